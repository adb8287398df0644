import dataclasses
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from tasks import get_task
from tasks.pictures import style
from tasks.pictures.scores import draw_scores
from tasks.results import Experiment
from tests.tasks.pictures.experiments import experiment


def detail(**intervals: tuple[float, float]) -> dict[str, Any]:
    return {
        "datasets": {
            name: {"all": {"score": 0.0, "stderr": 1.0, "count": 9, "interval": interval}}
            for name, interval in intervals.items()
        }
    }


def scored(task: str, *experiments: Experiment) -> list[Experiment]:
    """With the columns that are read of their results."""
    return [
        dataclasses.replace(one, scores={"result.json": get_task(task).columns("result.json", one.results)})
        for one in experiments
    ]


def draw(task: str, *experiments: Experiment) -> Figure:
    figure = draw_scores(get_task(task), scored(task, *experiments))
    assert figure is not None
    return figure


def labels(axis: Axes) -> list[str]:
    return [label.get_text() for label in axis.get_yticklabels()]


def marks(axis: Axes) -> list[Any]:
    """Colour, score, place from above and interval of each mark."""
    found = []
    for item in axis.containers:
        assert isinstance(item, ErrorbarContainer)
        line, _, bars = item
        ((x, y),) = np.asarray(line.get_xydata()).tolist()
        ends = None
        if bars:
            ((left, right),) = (segment[:, 0].tolist() for segment in bars[0].get_segments())
            ends = (pytest.approx(left), pytest.approx(right))
        found.append((line.get_color(), x, y, ends))
    return found


def test_means_on_top_and_a_row_for_each_data_set() -> None:
    figure = draw(
        "longbench",
        experiment("a", "dpi", {"qasper": 30.0, "lcc": 50.0}, detail=detail(qasper=(27.0, 34.0), lcc=(46.0, 53.0))),
        experiment(
            "b", "repro_se", {"qasper": 20.0, "lcc": 30.0}, detail=detail(qasper=(18.0, 22.0)), status="limited"
        ),
        experiment("c", "repro_yarn", {"qasper": 10.0, "lcc": None}),
    )
    means, data_sets = figure.axes
    assert labels(means) == ["GALI", "SelfExtend (limited)", "YaRN"]
    colours = [style.style_of(method).colour for method in ("dpi", "repro_se", "repro_yarn")]
    assert marks(means) == [
        (colours[0], 40.0, 0, (37.5, 40 + 2.5)), (colours[1], 25.0, 1, None), (colours[2], 10.0, 2, None)
    ]  # fmt: skip
    assert [text.get_text() for text in means.texts] == ["40.00 [37.50, 42.50] (of 2)", "25.00 (of 2)", "10.00 (of 1)"]
    assert labels(data_sets) == ["qasper", "lcc"], "only some of them say how many records they have"
    found = marks(data_sets)
    assert [mark[:2] for mark in found] == [
        (colours[0], 30.0), (colours[1], 20.0), (colours[2], 10.0), (colours[0], 50.0), (colours[1], 30.0)
    ]  # fmt: skip
    assert [mark[3] for mark in found] == [(27.0, 34.0), (18.0, 22.0), None, (46.0, 53.0), None]
    places = [mark[2] for mark in found]
    assert places == sorted(places)
    assert all(-0.5 < place < 0.5 for place in places[:3])
    assert all(0.5 < place < 1.5 for place in places[3:])
    assert means.get_ylim()[0] > means.get_ylim()[1], "the first on top"
    assert means.get_xlim() == data_sets.get_xlim()
    caption = figure.get_supxlabel()
    assert "model; W = 4,096; target 16,384 tokens" in caption.replace("\n", " ")
    assert "95 % intervals" in caption


def test_rows_say_how_many_records_they_have_where_that_is_the_same_for_all() -> None:
    both = detail(qasper=(1.0, 2.0), lcc=(1.0, 2.0))
    figure = draw("longbench", experiment("a", "dpi", {"qasper": 1.5, "lcc": 1.5}, detail=both))
    assert labels(figure.axes[1]) == ["qasper (9)", "lcc (9)"]


@pytest.mark.parametrize(("experiments", "stacks"), [(1, 1), (7, 2), (14, 3)])
def test_many_data_sets_stand_in_several_stacks(experiments: int, stacks: int) -> None:
    names = list(get_task("longbench").known_datasets())
    assert len(names) == 21
    members = [experiment(f"x{nth}", "dpi", dict.fromkeys(names, 10.0 + nth)) for nth in range(experiments)]
    figure = draw("longbench", *members)
    assert len(figure.axes) == 1 + stacks
    assert [name for axis in figure.axes[1:] for name in labels(axis)] == names
    assert sum(len(marks(axis)) for axis in figure.axes[1:]) == 21 * experiments
    assert figure.get_figheight() < 17
    assert len({axis.get_ylim() for axis in figure.axes[1:]}) == 1, "rows are as high in every stack"


def test_an_only_score_stands_for_itself() -> None:
    figure = draw("passkey_retrieval", experiment("x", None, {"accuracy": 0.75}))
    (axis,) = figure.axes
    assert labels(axis) == ["x"], "an unknown method goes by its name"
    assert [text.get_text() for text in axis.texts] == ["0.750"]
    assert [mark[1] for mark in marks(axis)] == [0.75]


def test_scores_without_a_mean_have_a_legend() -> None:
    figure = draw("pg19", experiment("x", "dpi", {"1024": 9.0, "2048": 8.0}))
    (axis,) = figure.axes
    assert labels(axis) == ["1024", "2048"]
    legend = axis.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["GALI"]


def test_scores_that_are_all_0_have_an_axis_from_0() -> None:
    axis = draw("longbench", experiment("x", "dpi", {"lcc": 0.0, "trec": 0.0})).axes[0]
    left, right = axis.get_xlim()
    assert -0.1 < left < 0 < right


def test_nothing_to_draw() -> None:
    task = get_task("longbench")
    assert task.draw([]) is None
    empty = scored("longbench", experiment("x", "dpi", {}), experiment("y", "dpi", {"lcc": None}))
    assert task.draw(empty) is None


def test_dollars_in_foreign_names_begin_no_formula(tmp_path: Path) -> None:
    name = r"a $\frac$ b"
    figure = draw("longbench", experiment(name, None, {"$x^$": 1.0, "lcc": 2.0}, model="$_$"))
    figure.savefig(tmp_path / "x.png")
    assert labels(figure.axes[1])[0].replace("\\$", "$") == "$x^$"


@pytest.mark.parametrize("task", ["longbench", "passkey_retrieval"])
def test_long_names_leave_the_axes_room(task: str) -> None:
    """Else Matplotlib gives its layout up and warns."""
    result = {"hotpotqa": 30.0, "trec": 20.0} if task == "longbench" else {"accuracy": 0.5}
    figure = draw(task, *(experiment(f"{n}{'x' * 199}", None, result) for n in range(2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        style.save(figure, io.BytesIO())
