"""Pictures: files repeat to the byte, sizes stay small, colours are the methods'; speed is read from its files."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from analysis.pictures import maps, method, speed, style, sweeps
from pipeline.figures import STYLES

IMAGES = Path(__file__).resolve().parents[2] / "images"
TABLES = """# Speed

| case | keys | batch | ms | here | flash | cuDNN | relative | |
|---|---|---|---|---|---|---|---|---|
| SelfExtend | 32,768 | 1 | 1.5 | 1,489 | 344 | - | flash 1.42 | met |
| GALI decoding | 16,384 | 8 | 0.2 | 2,779 | 2,866 | 2,711 | best 0.97 | met |

Words with a | in them.

| method | prefill s | | decoding ms | | peak GiB | | over weights GiB | |
|---|---|---|---|---|---|---|---|---|
| stock, SDPA | 1.50 | 1.00× | 64.70 | 1.00× | 10.88 | 1.00× | 5.67 | 1.00× |
| GALI chunk-free | 0.50 | 0.33× | 9.21 | 0.14× | 10.99 | 1.01× | 5.78 | 1.02× |
"""


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


def _widths_and_colours(figure: plt.Figure, panel: int = 0) -> list[tuple[float, str]]:
    bars = figure.axes[panel].patches
    plt.close(figure)
    return [(bar.get_width(), to_hex(bar.get_facecolor()).upper()) for bar in bars]


def test_speed_is_that_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "RESULTS.md").write_text(TABLES)
    rows = speed.read_table(tmp_path / "RESULTS.md", "case")
    assert [row["case"] for row in rows] == ["SelfExtend", "GALI decoding"]
    (here, colour), (flash, _), (cudnn, _) = _widths_and_colours(speed.draw(rows))
    assert (here, flash, cudnn) == (1489, 344, 0) and colour == STYLES["repro_se"][1]
    assert [width for width, _ in _widths_and_colours(speed.draw(rows), 1)] == [2779, 2866, 2711]
    assert speed.read_table(tmp_path / "RESULTS.md", "nothing") == []
    assert speed.read_table(tmp_path / "absent.md", "case") == []


def test_whole_models_keep_their_methods_colours(tmp_path: Path) -> None:
    (tmp_path / "RESULTS.md").write_text(TABLES)
    found = _widths_and_colours(speed.draw_models(speed.read_table(tmp_path / "RESULTS.md", "method")))
    assert found == [(1.5, STYLES["repro_original"][1]), (0.5, STYLES["dpi"][1])]


def test_the_repository_has_the_tables() -> None:
    for first in ("case", "method"):
        assert speed.read_table(IMAGES.parent / "benchmarks" / "RESULTS.md", first)
