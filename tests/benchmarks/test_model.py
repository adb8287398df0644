"""The whole-model benchmark's table and methods; the timing itself needs a GPU."""

from rich.console import Console

from benchmarks import model
from models.DPI.methods import build_method


def test_the_model_table_is_relative_to_the_stock_model() -> None:
    console = Console(width=160)
    results = [model.Result("stock", 2.0, 4.0, 10.0, 5.0), model.Result("other", 3.0, 2.0, 11.0, 5.0)]
    with console.capture() as capture:
        console.print(model.table_of(results))
    line = next(line for line in capture.get().splitlines() if "other" in line)
    assert [part.strip() for part in line.split("│") if part.strip().endswith("x")] == [
        "1.50x",
        "0.50x",
        "1.10x",
        "1.00x",
    ]


def test_settings_reach_the_default_length() -> None:
    for method, _, params in model.SETTINGS:
        build_method(method, params, model.WINDOW, 32_768 + 24 + 3)
