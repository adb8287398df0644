"""Pictures: files repeat to the byte, sizes stay small, colours are the methods'; speed is read from its files."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from analysis.pictures import maps, method, speed, style, sweeps
from pipeline.figures import STYLES

IMAGES = Path(__file__).resolve().parents[2] / "images"
RESULT = {"name": "chunk", "keys": 8, "queries": 3, "batch": 1, "gali": 2.0, "flash": 4.0, "cudnn": None, "work": 4e9}


def test_a_picture_is_the_same_in_every_run(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    for folder in ("a", "b"):
        style.publish(method.draw(), "method", tmp_path / folder)
    for name in ("method.png", "method.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not plt.get_fignums()


@pytest.mark.parametrize(("ending", "limit"), [("png", 200_000), ("svg", 500_000)])
def test_pictures_in_the_repository_are_small(ending: str, limit: int) -> None:
    sizes = {path.name: path.stat().st_size for path in IMAGES.glob(f"*.{ending}")}
    assert {f"{name}.{ending}" for name in ("method", "needle", "perplexity")} <= sizes.keys()
    assert {name: size for name, size in sizes.items() if size > limit} == {}


def test_bars_have_the_colours_of_their_methods() -> None:
    names = ["dpi", "repro_se"]
    rows = [(name, 0, 4, 0.5, -1.0, -0.5, 0.0, 0.5, 1.0) for name in names]
    table = pd.DataFrame(rows, columns=["method", "low", "high", "absolute", "q5", "q25", "q50", "q75", "q95"])
    figure = maps.draw_differences(table, window=4)
    found = [to_hex(bar.get_facecolor()).upper() for bar in figure.axes[0].patches]
    plt.close(figure)
    assert found == [STYLES[name][1] for name in names]


def test_trends_draw_the_best_of_a_target() -> None:
    rows = [("longbench", "m", "dpi", "a", 16384, 20.0, 1, True), ("longbench", "m", "dpi", "b", 16384, 30.0, 1, False)]
    columns = ["task", "model", "method", "experiment", "target", "score", "datasets", "complete"]
    figure = sweeps.draw_trends(pd.DataFrame(rows, columns=columns))
    line, hollow = figure.axes[0].lines
    plt.close(figure)
    assert line.get_xydata().tolist() == [[16, 30]] and hollow.get_xydata().tolist() == [[16, 30]]


def test_speed_reads_results_and_nothing_else(tmp_path: Path) -> None:
    assert speed.read_results(tmp_path) == []
    (tmp_path / "old.json").write_text(json.dumps([{**RESULT, "gali": 9.0}]))
    (tmp_path / "recent.json").write_text(json.dumps([RESULT, {"other": 1}]))
    (tmp_path / "settings.json").write_text(json.dumps({"a": 1}))
    assert speed.read_results(tmp_path) == [RESULT]
    figure = speed.draw([RESULT])
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    plt.close(figure)
    assert widths == pytest.approx([2.0, 1.0, 0.0])  # 4e9 FLOP in 2 ms are 2 TFLOP/s


def test_whole_models_keep_their_methods_colours(tmp_path: Path) -> None:
    def line(name: str, prefill: float) -> dict[str, object]:
        return {"name": name, "prefill": prefill, "decoding": 2.0, "peak": 9.0, "over_weights": 3.5}

    (tmp_path / "model.json").write_text(json.dumps([line("stock, SDPA", 1.5), line("GALI chunk-free", 0.5)]))
    (tmp_path / "attention.json").write_text(json.dumps([RESULT]))
    results = speed.read_models(tmp_path)
    assert [result["prefill"] for result in results] == [1.5, 0.5]
    figure = speed.draw_models(results)
    bars = figure.axes[0].patches
    plt.close(figure)
    assert [bar.get_width() for bar in bars] == [1.5, 0.5]
    expected = [STYLES["repro_original"][1], STYLES["dpi"][1]]
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == expected
