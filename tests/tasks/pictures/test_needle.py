import pytest

from tasks import get_task
from tasks.pictures import style
from tasks.pictures.needle import draw_needles
from tests.tasks.pictures.experiments import cells, experiment


def test_heatmaps_show_the_scores_on_one_scale_with_gaps_and_window() -> None:
    figure = draw_needles(
        [
            experiment("dpi-x", "dpi", cells(lambda length, depth: length / 10_000 + depth / 1000)),
            experiment("yarn-x", "repro_yarn", cells(lambda *_: 0.25)[:1], window=512),
        ]
    )
    assert figure is not None
    first, second = figure.axes[:2]
    values = first.images[0].get_array()
    assert values is not None
    assert values[0].tolist() == pytest.approx([0.15, 0.95])
    assert values[1].tolist() == pytest.approx([0.2, 1.0])
    assert second.images[0].get_array().mask.tolist() == [[False, True], [True, True]]
    assert first.get_ylim() == second.get_ylim() == (1.5, -0.5), "all panels have all depths"
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 1)
    # Lengths 1000 and 9000, window 4096: between the first cell and the second.
    assert {tuple(line.get_xdata()) for line in first.lines} == {(0.5, 0.5)}
    assert [text.get_text() for text in first.texts] == ["W = 4,096"]
    assert first.title.get_color() == style.style_of("dpi").colour


def test_a_window_beyond_all_lengths_is_only_named() -> None:
    figure = draw_needles([experiment("dpi-x", "dpi", cells(lambda *_: 1.0), window=9000)])
    assert figure is not None
    assert not list(figure.axes[0].lines)
    assert [text.get_text() for text in figure.axes[0].texts] == ["W = 9,000 →"]


@pytest.mark.parametrize("status", ["complete", "no run record", "incomplete 1/2", "limited"])
def test_incomplete_runs_are_marked(status: str) -> None:
    figure = get_task("needle").draw([experiment("dpi-x", "dpi", cells(lambda *_: 0.5), status=status)])
    assert figure is not None
    marked = "" if status in ("complete", "no run record") else f"\n({status})"
    assert figure.axes[0].get_title() == f"dpi-x{marked}"


def test_nothing_to_draw() -> None:
    assert draw_needles([]) is None
