import io
import warnings
from typing import Any

import numpy as np
import pytest

from tasks import get_task
from tasks.pictures import style
from tasks.pictures.perplexity import draw_perplexity
from tests.tasks.pictures.experiments import experiment


def test_curves_have_their_methods_colour_and_the_window() -> None:
    figure = get_task("pg19").draw(
        [
            experiment("dpi-x", "dpi", {"1024": 11.0, "2048": 12.0}),
            experiment("dpi-y", "dpi", {"1024": 11.5}, status="limited", target=32768),
            experiment("se-x", "repro_se", {"1024": 13.0}, window=2048),
        ]
    )
    assert figure is not None
    by_window = {axis.get_title(): axis for axis in figure.axes}
    assert set(by_window) == {"model, W = 4,096", "model, W = 2,048"}
    lines = {line.get_label(): line for line in by_window["model, W = 4,096"].lines}
    first, second = lines["GALI, to 16,384"], lines["GALI, to 32,768 (limited)"]
    assert first.get_xydata().tolist() == [[1024, 11], [2048, 12]]
    assert first.get_color() == second.get_color() == style.style_of("dpi").colour
    assert first.get_linestyle() != second.get_linestyle()
    assert any(tuple(line.get_xdata()) == (4096, 4096) for line in by_window["model, W = 4,096"].lines)
    assert first.get_linewidth() > second.get_linewidth(), "curves that fall together"


def steps(**intervals: tuple[float, float]) -> dict[str, object]:
    return {
        "steps": {
            length[1:]: {"perplexity": {"score": 1.0, "stderr": 1.0, "count": 3, "interval": interval}}
            for length, interval in intervals.items()
        }
    }


def test_intervals_of_the_last_points_stand_behind_the_curves() -> None:
    result = {"1024": 10.0, "2048": 12.0}
    figure = draw_perplexity(
        [
            experiment("x", "dpi", result, detail=steps(_1024=(9.0, 11.0), _2048=(11.0, 14.0))),
            experiment("y", "repro_se", result, detail=steps(_1024=(9.0, 11.0), _2048=(1.0, 900.0))),
        ]
    )
    assert figure is not None
    axis = figure.axes[0]
    points: list[Any] = [np.asarray(line.get_xydata()).tolist() for line in axis.lines]
    bars = [[first, last] for first, last in points if first[0] == last[0] != 4096]
    assert [[first[1], last[1]] for first, last in bars] == [[11.0, 14.0], [1.0, 900.0]]
    places = [first[0] for first, _ in bars]
    assert 2048 < places[0] < places[1] < axis.get_xlim()[1]
    assert axis.get_ylim()[1] < 2.5 * 12, "wide intervals leave room for the curves"
    caption = figure.get_supxlabel().replace("\n", " ")
    assert "95 % intervals over 3 texts" in caption


def test_a_window_far_beyond_all_lengths_is_only_named() -> None:
    figure = draw_perplexity([experiment("x", "dpi", {"100": 10.0, "200": 9.0})])
    assert figure is not None
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.texts] == ["W = 4,096 →"]
    assert axis.get_xlim()[1] < 400
    assert axis.get_xlabel() == "length, thousand tokens"


def test_ticks_stand_at_multiples_of_1024() -> None:
    figure = draw_perplexity([experiment("x", "dpi", {str(1024 * step): 9.0 for step in range(1, 17)}, window=8192)])
    assert figure is not None
    axis = figure.axes[0]
    figure.canvas.draw()
    ticks = [label.get_text() for label in axis.get_xticklabels()]
    assert {"2", "8", "16"} <= set(ticks)
    assert len(axis.get_yticks()) >= 5


@pytest.mark.parametrize(("highest", "scale"), [(40.0, "linear"), (41.0, "log")])
def test_a_wide_range_has_a_logarithmic_scale(highest: float, scale: str) -> None:
    figure = draw_perplexity([experiment("dpi-x", "dpi", {"1024": 10.0, "2048": highest})])
    assert figure is not None
    assert figure.axes[0].get_yscale() == scale


def test_perplexities_of_nothing_are_no_picture() -> None:
    assert draw_perplexity([experiment("dpi-x", "dpi", {})]) is None
    assert draw_perplexity([]) is None


def test_curves_that_lie_flat_beside_a_high_one_are_shown_again() -> None:
    low = [
        experiment("x", "dpi", {"1024": 10.0, "2048": 12.0}),
        experiment("y", "repro_se", {"1024": 10.0, "2048": 11.0}),
    ]
    for highest, shown in ((80.0, 1), (100.0, 2)):
        figure = draw_perplexity([*low, experiment("z", "repro_original", {"1024": 10.0, "2048": highest})])
        assert figure is not None
        assert len(figure.axes) == shown
    near = figure.axes[1]
    legend = near.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["GALI", "SelfExtend"]
    assert near.get_title() == "model, W = 4,096, the lowest curves"
    assert near.get_ylim()[1] < 13
    assert draw_perplexity([low[0], experiment("z", "repro_original", {"1024": 10.0, "2048": 900.0})]) is not None


@pytest.mark.parametrize("name", ["x" * 199, "a long name of many words " * 7])
def test_long_names_leave_the_axis_room(name: str) -> None:
    """Else Matplotlib gives its layout up and warns."""
    figure = draw_perplexity([experiment(f"{n}{name}", "dpi", {"1024": 3.0, "2048": 4.0}) for n in range(2)])
    assert figure is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        style.save(figure, io.BytesIO())
    [legend] = [text.get_text() for text in figure.axes[0].get_legend().get_texts()][:1]
    assert legend.replace("\n", "").replace(" ", "").endswith(f"0{name}".replace(" ", ""))
