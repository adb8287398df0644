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
    assert first.get_title() == "GALI, W = 4,096\n0.575"
    assert second.get_title() == "YaRN, W = 512\n0.250"
    assert first.title.get_color() == style.DARK, "the methods' colours are too light on white"
    borders = {tuple(axis.get_minor_locator()()) for axis in (first.xaxis, first.yaxis)}
    assert borders == {(0.5,)}, "between two columns, and between two rows"
    assert all(tick.gridline.get_visible() for tick in first.xaxis.get_minor_ticks())


def test_a_window_beyond_all_lengths_is_only_named() -> None:
    figure = draw_needles([experiment("dpi-x", "dpi", cells(lambda *_: 1.0), window=9000)])
    assert figure is not None
    assert not list(figure.axes[0].lines)
    assert [text.get_text() for text in figure.axes[0].texts] == ["W = 9,000 →"]


@pytest.mark.parametrize("status", ["complete", "no run record", "incomplete 1/2", "limited"])
def test_incomplete_runs_are_marked(status: str) -> None:
    figure = get_task("needle").draw([experiment("dpi-x", "dpi", cells(lambda *_: 0.5), status=status)])
    assert figure is not None
    marked = "" if status in ("complete", "no run record") else f" ({status})"
    assert figure.axes[0].get_title() == f"GALI{marked}\n0.500"


def test_the_title_has_the_interval_of_all_trials() -> None:
    overall = {"overall": {"score": 0.5, "stderr": 0.1, "count": 40, "interval": [0.35, 0.65]}}
    figure = draw_needles([experiment("x", "dpi", cells(lambda *_: 0.5), detail=overall)], 2)
    assert figure is not None
    assert figure.axes[0].get_title() == "GALI\n0.50 [0.35, 0.65]"


@pytest.mark.parametrize(("lengths", "most"), [(8, 8), (16, 16), (32, 16)])
def test_axes_have_as_many_labels_as_fit(lengths: int, most: int) -> None:
    result = [
        {"context_length": 1000 * (length + 1), "depth_percent": 6.25 * (depth + 1), "score": 1.0}
        for length in range(lengths)
        for depth in range(16)
    ]
    figure = draw_needles([experiment("x", "dpi", result)])
    assert figure is not None
    assert most / 2 <= len(figure.axes[0].get_xticks()) <= most
    assert len(figure.axes[0].get_yticks()) == 16


def test_nothing_to_draw() -> None:
    assert draw_needles([]) is None
