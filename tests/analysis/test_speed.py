"""Speed is read from the tables, and drawn in the colours of the methods that lines name."""

from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.speed import draw, draw_models, read_machine, read_table
from models.DPI.methods.dpi import DPI
from models.DPI.methods.ntk import NTK, DynamicNTK
from models.DPI.methods.original import Original
from models.DPI.methods.selfextend import SelfExtend
from tests.conftest import ROOT

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


def _widths_and_colours(figure: Figure, panel: int = 0) -> list[tuple[float, str]]:
    bars = [bar for bar in figure.axes[panel].patches if isinstance(bar, Rectangle)]
    return [(bar.get_width(), to_hex(bar.get_facecolor()).upper()) for bar in bars]


def test_speed_is_that_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "RESULTS.md").write_text(TABLES)
    rows = read_table(tmp_path / "RESULTS.md", "case")
    assert [row["case"] for row in rows] == ["SelfExtend", "GALI decoding"]
    (here, colour), (flash, _), (cudnn, _) = _widths_and_colours(draw(rows))
    assert (here, flash, cudnn) == (1489, 344, 0)
    assert colour == SelfExtend.colour
    assert [width for width, _ in _widths_and_colours(draw(rows), 1)] == [2779, 2866, 2711]
    assert read_table(tmp_path / "RESULTS.md", "nothing") == []
    assert read_table(tmp_path / "absent.md", "case") == []


def test_whole_models_keep_their_methods_colours(tmp_path: Path) -> None:
    (tmp_path / "RESULTS.md").write_text(TABLES)
    found = _widths_and_colours(draw_models(read_table(tmp_path / "RESULTS.md", "method")))
    assert found == [(1.5, Original.colour), (0.5, DPI.colour)]


@pytest.mark.parametrize(
    ("line", "colour"),
    [("NTK", NTK.colour), ("Dyn-NTK", DynamicNTK.colour), ("original", Original.colour), ("chunk of 512", DPI.colour)],
)
def test_a_line_has_the_colour_of_the_method_that_it_names(line: str, colour: str) -> None:
    row = {"method": line, "prefill s": "1", "decoding ms": "1", "over weights GiB": "1"}
    assert _widths_and_colours(draw_models([row])) == [(1, colour)]


def test_the_repository_has_the_tables() -> None:
    for first in ("case", "method"):
        assert read_table(ROOT / "benchmarks" / "RESULTS.md", first)


def test_the_machine_of_the_figures_is_one_line(tmp_path: Path) -> None:
    said = read_machine(ROOT / "benchmarks" / "RESULTS.md")
    assert said.startswith("One NVIDIA H100")
    assert "PyTorch" in said
    assert "\n" not in said
    assert read_machine(tmp_path / "none.md") == ""
