import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline import report, store
from tasks import get_task
from tasks.base import Task
from tasks.errors import UserError
from tests.pipeline.scored import LONGBENCH, NEEDLE, PG19, SQUARES, cells, collect, experiment


def test_foreign_experiments_are_collected_by_name(tmp_path: Path) -> None:
    for name in ("llama2-7b-chat-4k", "dpi-other"):
        folder = tmp_path / LONGBENCH.folder / name
        folder.mkdir(parents=True)
        (folder / "qasper.jsonl").write_text('{"pred": "x"}\n')
        store.write_json(folder / "result.json", {"qasper": 3.25})
    written = collect(tmp_path, LONGBENCH)
    assert list(pd.read_excel(written["lb_dpi.xlsx"])["experiment"]) == ["dpi-other"]
    assert list(pd.read_excel(written["lb_dpi.xlsx"])["status"]) == ["no run record"]
    assert list(pd.read_excel(written["lb_repro.xlsx"])["experiment"]) == ["llama2-7b-chat-4k"]


def test_no_table_is_written_of_no_experiment_and_none_of_before_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    experiment(tmp_path, SQUARES, "yarn-x", "repro_yarn", {"result.json": {"a": 1.0}})
    assert set(collect(tmp_path, SQUARES)) == {"squares_repro.xlsx", "squares.md", "squares.png"}
    assert "no experiment of GALI: squares_dpi.xlsx is not written" in caplog.text
    folder = experiment(tmp_path, SQUARES, "dpi-x", "dpi", {"result.json": {"a": 1.0}})
    path = collect(tmp_path, SQUARES)["squares_dpi.xlsx"]
    shutil.rmtree(folder)
    collect(tmp_path, SQUARES)
    assert not path.exists()
    assert "no experiment of GALI: squares_dpi.xlsx is removed" in caplog.text
    store.write_json(tmp_path / SQUARES.folder / "yarn-x/result.json", {"a": None})
    assert set(collect(tmp_path, SQUARES)) == {"squares_repro.xlsx", "squares.md"}
    assert "nothing to draw: squares.png is removed" in caplog.text


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_table_is_written_whole_or_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    folder = experiment(tmp_path, SQUARES, "dpi-x", "dpi", {"result.json": {"a": 1.0}})
    experiment(tmp_path, SQUARES, "yarn-x", "repro_yarn", {"result.json": {"a": 1.0}})
    tables = [path for path in collect(tmp_path, SQUARES).values() if path.suffix != ".png"]
    before = {path: path.read_bytes() for path in tables}
    names = {path.name for path in tables[0].parent.iterdir()}
    store.write_json(folder / "result.json", {"a": 2.0, "b": 3.0})
    synced: list[int] = []

    def full_disk(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > broken:
            raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        collect(tmp_path, SQUARES)
    assert [path.read_bytes() == before[path] for path in tables] == [n >= broken for n in range(3)]
    assert {path.name for path in tables[0].parent.iterdir()} == names


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({}, "complete"),
        ({"predicted": 1}, "incomplete 1/2"),
        ({"limited": True}, "limited"),
    ],
)
def test_incomplete_runs_are_marked_everywhere(tmp_path: Path, options: dict[str, Any], status: str) -> None:
    experiment(tmp_path, NEEDLE, "dpi-x", "dpi", {"result.json": cells(lambda *_: 0.5)}, **options)
    written = collect(tmp_path, NEEDLE)
    assert list(pd.read_excel(written["needle_dpi.xlsx"])["status"]) == [status]
    assert status in written["needle.md"].read_text()
    figure = NEEDLE.draw([report.read_experiment(tmp_path / "needle/pred/dpi-x", NEEDLE)])
    assert figure is not None
    assert ("(" in figure.axes[0].get_title()) == (status != "complete")


def test_a_score_older_than_the_predictions_is_marked(tmp_path: Path) -> None:
    results = {"result.json": cells(lambda *_: 0.5), "result_detail.json": {"run": {"predicted": 1}}}
    folder = experiment(tmp_path, NEEDLE, "dpi-x", "dpi", results)
    assert report.read_experiment(folder, NEEDLE).status == "scored at 1"


def without_predictions(folder: Path, **scored: Any) -> Path:
    """The experiment's folder as it is committed: results and the run record, no data."""
    for path in folder.glob("*.jsonl"):
        path.unlink()
    run = {"predicted": 2, "failed": 0, "expected": 2, "limited": False, "method": "dpi", "window": 4096, **scored}
    store.write_json(folder / "result_detail.json", {"run": run})
    return folder


@pytest.mark.parametrize(
    ("scored", "status"),
    [
        ({}, "complete"),
        ({"predicted": 1, "failed": 1}, "incomplete 1/2, 1 failed"),
        ({"limited": True}, "limited"),
        ({"predicted": 0, "failed": 2}, "incomplete 0/2, 2 failed, every record failed"),
    ],
)
def test_results_without_their_predictions_have_the_status_they_were_scored_with(
    tmp_path: Path, scored: dict[str, Any], status: str
) -> None:
    folder = experiment(tmp_path, NEEDLE, "dpi-x", "dpi", {"result.json": cells(lambda *_: 0.5)})
    without_predictions(folder, **scored)
    assert report.read_experiment(folder, NEEDLE).status == status
    assert list(pd.read_excel(collect(tmp_path, NEEDLE)["needle_dpi.xlsx"])["status"]) == [status]


@pytest.mark.parametrize(
    ("scored", "said"),
    [
        ({"window": 8192}, r"is of another run than run\.json beside it: window was 8192, is 4096"),
        ({"params": {"chunk_coe": 1}}, "params.chunk_coe was 1, is None"),
        ({"predicted": "2"}, "predicted = '2'"),
        ({"expected": -1}, "expected = -1"),
    ],
)
def test_results_of_another_run_are_not_taken_for_this_one(tmp_path: Path, scored: dict[str, Any], said: str) -> None:
    folder = experiment(tmp_path, NEEDLE, "dpi-x", "dpi", {"result.json": cells(lambda *_: 0.5)})
    without_predictions(folder, **scored)
    with pytest.raises(UserError, match=said) as error:
        report.read_experiment(folder, NEEDLE)
    assert "result_detail.json" in str(error.value)


def test_nothing_predicted_and_nothing_scored_is_incomplete(tmp_path: Path) -> None:
    folder = experiment(tmp_path, NEEDLE, "dpi-x", "dpi", {}, predicted=0)
    assert report.read_experiment(folder, NEEDLE).status == "incomplete 0/2, not scored"


def test_an_unscored_run_is_listed_and_nothing_scored_is_an_error(tmp_path: Path) -> None:
    experiment(tmp_path, NEEDLE, "dpi-x", "dpi", {})
    with pytest.raises(UserError, match=r"eval\.py --task needle"):
        collect(tmp_path, NEEDLE)
    experiment(tmp_path, NEEDLE, "dpi-y", "dpi", {"result.json": cells(lambda *_: 0.5)})
    assert list(pd.read_excel(collect(tmp_path, NEEDLE)["needle_dpi.xlsx"])["status"]) == ["not scored", "complete"]


def test_perplexities_of_nothing_are_no_picture(tmp_path: Path) -> None:
    experiment(tmp_path, PG19, "dpi-x", "dpi", {"result.json": {}})
    assert "pg19.png" not in collect(tmp_path, PG19)


@pytest.mark.parametrize("name", ["squares_dpi.xlsx", ".squares_dpi.xlsx.tmp", "squares.md", "squares.png"])
def test_a_link_in_place_of_a_table_is_refused(tmp_path: Path, name: str) -> None:
    experiment(tmp_path, SQUARES, "dpi-x", "dpi", {"result.json": {"a": 1.0}})
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / SQUARES.folder / name).symlink_to(victim)
    with pytest.raises(UserError, match="is a symbolic link"):
        collect(tmp_path, SQUARES)
    assert victim.read_text() == "mine"


def test_a_picture_is_written_whole_or_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = experiment(tmp_path, SQUARES, "dpi-x", "dpi", {"result.json": {"a": 1.0}})
    path = collect(tmp_path, SQUARES)["squares.png"]
    before = path.read_bytes()
    store.write_json(folder / "result.json", {"a": 2.0, "b": 3.0})

    def torn(figure: object, target: Any) -> None:
        target.write(b"\x89PNG and no more")
        raise OSError("no space left")

    monkeypatch.setattr("tasks.pictures.style.save", torn)
    with pytest.raises(OSError, match="no space left"):
        collect(tmp_path, SQUARES)
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*.tmp"))


def test_where_every_record_failed_it_is_said_and_nothing_drawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = experiment(tmp_path, NEEDLE, "dpi-x", "dpi", {"result.json": []})
    (folder / "d.jsonl").write_text('{"id": "0", "error": "OOM"}\n{"id": "1", "error": "OOM"}\n')
    written = collect(tmp_path, NEEDLE)
    assert "needle.png" not in written
    assert "every record failed" in caplog.text
    assert list(pd.read_excel(written["needle_dpi.xlsx"])["status"]) == [
        "incomplete 0/2, 2 failed, every record failed"
    ]
    experiment(tmp_path, NEEDLE, "dpi-y", "dpi", {"result.json": cells(lambda *_: 0.5)})
    assert "needle.png" in collect(tmp_path, NEEDLE)
    assert "dpi-x has no scores" in caplog.text


@pytest.mark.parametrize(
    ("task", "content"),
    [
        (NEEDLE, [{"score": 1}]),
        (NEEDLE, 3),
        (NEEDLE, [{"context_length": 1000, "depth_percent": 50, "score": "x"}]),
        (PG19, {"a": 3}),
        (PG19, {"1024": "x"}),
        (PG19, {"1024": True}),
        (LONGBENCH, [1]),
        (LONGBENCH, {"qasper": "x"}),
        (get_task("leval"), {"tpo": 3}),
        (get_task("longbench_e"), {"qasper": 3}),
    ],
)
def test_a_result_of_another_shape_is_named(tmp_path: Path, task: Task, content: Any) -> None:
    experiment(tmp_path, task, "dpi-x", "dpi", {"result.json": content})
    with pytest.raises(UserError, match=r"dpi-x/result\.json' has not the shape that") as error:
        collect(tmp_path, task)
    assert error.value.__cause__ is not None
    details: tuple[object, ...] = ([], {"run": 3})
    for detail in details:
        store.write_json(tmp_path / task.folder / "dpi-x/result_detail.json", detail)
        with pytest.raises(UserError, match=r"result_detail\.json'"):
            collect(tmp_path, task)


@pytest.mark.parametrize("cell", [{"context_length": 1000, "score": 1.0}, {"depth_percent": [5], "score": 1.0}])
def test_needles_without_a_place_are_named(tmp_path: Path, cell: dict[str, Any]) -> None:
    experiment(tmp_path, NEEDLE, "dpi-x", "dpi", {"result.json": [{"context_length": 1000, **cell}]})
    with pytest.raises(UserError, match=r"result\.json' has not the shape that needle writes"):
        collect(tmp_path, NEEDLE)


def test_results_that_cannot_be_drawn_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment(tmp_path, SQUARES, "dpi-x", "dpi", {"result.json": {"a": 1.0}})

    def draw(*_: object) -> None:
        raise KeyError("somewhere")

    monkeypatch.setattr(type(SQUARES), "draw", draw)
    said = r"squares\.png' cannot be drawn from the result\.json of its experiments \(KeyError: 'somewhere'\)"
    with pytest.raises(UserError, match=said) as error:
        collect(tmp_path, SQUARES)
    assert isinstance(error.value.__cause__, KeyError)
