import pytest

from tasks import get_task
from tasks.pictures import style
from tasks.pictures.perplexity import draw_perplexity
from tests.tasks.pictures.experiments import experiment


def test_curves_have_their_methods_colour_and_the_window() -> None:
    figure = get_task("pg19").draw(
        [
            experiment("dpi-x", "dpi", {"1024": 11.0, "2048": 12.0}),
            experiment("dpi-y", "dpi", {"1024": 11.5}, status="limited"),
            experiment("se-x", "repro_se", {"1024": 13.0}, window=2048),
        ]
    )
    assert figure is not None
    by_window = {axis.texts[0].get_text(): axis for axis in figure.axes}
    assert set(by_window) == {"W = 4,096", "W = 2,048"}
    lines = {line.get_label(): line for line in by_window["W = 4,096"].lines}
    first, second = lines["dpi-x"], lines["dpi-y (limited)"]
    assert first.get_xydata().tolist() == [[1024, 11], [2048, 12]]
    assert first.get_color() == second.get_color() == style.style_of("dpi").colour
    assert first.get_linestyle() != second.get_linestyle()
    assert any(tuple(line.get_xdata()) == (4096, 4096) for line in by_window["W = 4,096"].lines)


@pytest.mark.parametrize(("highest", "scale"), [(40.0, "linear"), (41.0, "log")])
def test_a_wide_range_has_a_logarithmic_scale(highest: float, scale: str) -> None:
    figure = draw_perplexity([experiment("dpi-x", "dpi", {"1024": 10.0, "2048": highest})])
    assert figure is not None
    assert figure.axes[0].get_yscale() == scale


def test_perplexities_of_nothing_are_no_picture() -> None:
    assert draw_perplexity([experiment("dpi-x", "dpi", {})]) is None
    assert draw_perplexity([]) is None
