from typing import Any

import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from tasks import get_task
from tasks.pictures import style
from tasks.pictures.scores import draw_scores
from tests.tasks.pictures.experiments import experiment


def detail(stderr: float, *datasets: str) -> dict[str, Any]:
    return {"datasets": {name: {"all": {"score": 0.0, "stderr": stderr, "count": 9}} for name in datasets}}


def draw(task: str, *experiments: Any) -> Figure:
    figure = get_task(task).draw(experiments)
    assert figure is not None
    return figure


def test_a_row_per_experiment_with_the_best_on_top_and_error_bars_where_they_are_known() -> None:
    axis = draw(
        "longbench",
        experiment("best", "dpi", {"qasper": 30.0, "lcc": 50.0}, detail=detail(2.0, "qasper", "lcc")),
        experiment("half", "repro_se", {"qasper": 20.0, "lcc": 30.0}, detail=detail(2.0, "qasper"), status="limited"),
        experiment("least", "repro_yarn", {"qasper": 10.0, "lcc": None}),
    ).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["least", "half (limited)", "best"]
    assert [text.get_text() for text in axis.texts] == ["10.00", "25.00", "40.00"]
    (bar,) = (item for item in axis.containers if isinstance(item, ErrorbarContainer))
    ((left, right),) = (segment[:, 0] for segment in bar[2][0].get_segments())
    assert (left, right) == pytest.approx((40 - 2**0.5, 40 + 2**0.5)), "two errors of 2: sqrt(8) / 2"
    legend = axis.get_legend()
    assert legend is not None
    labels = {text.get_text() for text in legend.get_texts()}
    assert labels == {style.style_of(method).label for method in ("dpi", "repro_se", "repro_yarn")}
    assert axis.get_xlim()[1] > 40 + 2**0.5


def test_an_only_score_stands_for_itself() -> None:
    axis = draw("passkey_retrieval", experiment("x", None, {"accuracy": 0.75})).axes[0]
    assert [text.get_text() for text in axis.texts] == ["0.75"]
    points = [line for line in axis.lines if line.get_marker() == style.style_of(None).marker]
    assert [line.get_xydata().tolist() for line in points] == [[[0.75, 0.0]]]


def test_nothing_to_draw() -> None:
    task = get_task("longbench")
    assert task.draw([]) is None
    perplexities = experiment("x", "dpi", {"1024": 9.0, "2048": 8.0})
    assert draw_scores(get_task("pg19"), [perplexities]) is None, "several scores without a mean"
    assert task.draw([experiment("x", "dpi", {}), experiment("y", "dpi", {"lcc": None})]) is None
