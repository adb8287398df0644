"""Pictures: files repeat to the byte and stay small; nothing that draws chooses a backend or opens pyplot."""

import subprocess
import sys
from pathlib import Path

import pytest

import analysis
from analysis import method
from analysis.pictures import describe, panels, publish
from tasks.pictures.style import caption_in, write_caption
from tests.conftest import ROOT


def test_a_picture_is_the_same_in_every_run(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    for folder in ("a", "b"):
        publish(method.draw(), "method", tmp_path / folder)
    for name in ("method.png", "method.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_is_said_of_a_picture_stands_behind_its_own_caption(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    figure, _ = panels(1, 1, (2.0, 2.0), (0.1, 0.1))
    publish(figure, "a", tmp_path, said="tiny; W = 512; CPU.")
    assert caption_in(figure) == "tiny; W = 512; CPU."
    write_caption(figure, "a price of $3 and one of $4, in a caption that is longer than a line")
    publish(figure, "a", tmp_path, said="Read: books.")
    assert caption_in(figure).endswith(
        "a price of $3 and one of $4, in a caption that is longer than a line Read: books."
    )


@pytest.mark.parametrize(("ending", "limit"), [("png", 200_000), ("svg", 500_000)])
def test_pictures_in_the_repository_are_small(ending: str, limit: int) -> None:
    sizes = {path.name: path.stat().st_size for path in (ROOT / "images").glob(f"*.{ending}")}
    assert {f"{name}.{ending}" for name in ("method", "needle", "perplexity")} <= sizes.keys()
    assert {name: size for name, size in sizes.items() if size > limit} == {}


def test_no_module_of_the_analysis_imports_pyplot() -> None:
    """Whoever imports one chooses the backend; a fresh process, as a test runner has imported it long since."""
    names = sorted(path.stem for path in Path(analysis.__path__[0]).glob("[a-z]*.py"))
    imports = "; ".join(f"import analysis.{name}" for name in names)
    check = f"import sys; {imports}; assert 'matplotlib.pyplot' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_panels_are_named_at_the_outside() -> None:
    figure, axes = panels(5, 3, (2.0, 3.0), (0.5, 0.25), ("x", "y"))
    assert figure.get_size_inches().tolist() == [6.5, 6.25]
    assert [axis.get_visible() for axis in figure.axes] == [True] * 5 + [False]
    assert [axis.get_ylabel() for axis in axes] == ["y", "", "", "y", ""]
    assert [axis.get_xlabel() for axis in axes] == ["", "", "x", "x", "x"]


def test_parameters_in_one_line() -> None:
    assert describe({"factor": 8.0, "group_size": 3}) == "factor = 8, group_size = 3"
    assert describe({}) == "no parameters"
