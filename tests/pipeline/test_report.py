import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pytest

from pipeline import report, store
from tasks import get_task
from tasks.base import Task
from tasks.errors import UserError
from tests.pipeline.fake_task import FakeTask

NEEDLE, PG19, LONGBENCH = get_task("needle"), get_task("pg19"), get_task("longbench")


def experiment(
    root: Path,
    task: Task,
    name: str,
    method: str,
    results: dict[str, Any],
    *,
    window: int = 4096,
    expected: int = 2,
    predicted: int = 2,
    params: dict[str, Any] | None = None,
    limited: bool = False,
) -> Path:
    folder = root / task.folder / name
    folder.mkdir(parents=True)
    config = {"task": task.name, "method": method, "model": "some/model", "max_pe": 16384, "params": params or {}}
    datasets = {"d": {"records": expected, "limited": limited}}
    store.write_json(folder / "run.json", {"config": config, "window": window, "datasets": datasets})
    (folder / "d.jsonl").write_text("".join(json.dumps({"id": str(i)}) + "\n" for i in range(predicted)))
    for file, content in results.items():
        store.write_json(folder / file, content)
    return folder


def cells(score: Callable[[int, float], float]) -> list[dict[str, Any]]:
    return [
        {"context_length": length, "depth_percent": depth, "score": score(length, depth)}
        for length in (1000, 9000)
        for depth in (50.0, 100.0)
    ]


def collect(root: Path, task: Task) -> dict[str, Path]:
    folders = store.list_experiments(root, task)
    return {path.name: path for path in report.collect(folders, task, root / task.folder)}


def test_excel_splits_ours_from_the_others_and_holds_parameters(tmp_path: Path) -> None:
    experiment(tmp_path, PG19, "dpi-x", "dpi", {"result.json": {"1024": 11.0, "2048": 12.5}}, params={"chunk_coe": 3})
    experiment(tmp_path, PG19, "yarn-x", "repro_yarn", {"result.json": {"1024": 13.0}}, params={"factor": 2})
    written = collect(tmp_path, PG19)
    assert set(written) == {"pg19_dpi.xlsx", "pg19_repro.xlsx", "pg19.md", "pg19.png"}
    ours, others = pd.read_excel(written["pg19_dpi.xlsx"]), pd.read_excel(written["pg19_repro.xlsx"])
    assert ours.to_dict("records") == [
        {
            "experiment": "dpi-x", "method": "dpi", "model": "some/model", "window": 4096, "target": 16384,
            "status": "complete", "chunk_coe": 3, "1024": 11, "2048": 12.5,
        }
    ]  # fmt: skip
    assert list(others["experiment"]) == ["yarn-x"]
    assert list(others["factor"]) == [2]
    assert others["2048"].isna().all()


def test_a_parameter_named_like_a_column_has_its_own(tmp_path: Path) -> None:
    params = {"window": 3, "2048": 5, "chunk_coe": 1}
    experiment(tmp_path, PG19, "dpi-x", "dpi", {"result.json": {"1024": 11.0, "2048": 12.5}}, params=params)
    (row,) = pd.read_excel(collect(tmp_path, PG19)["pg19_dpi.xlsx"]).to_dict("records")
    assert (row["window"], row["2048"], row["chunk_coe"]) == (4096, 12.5, 1)
    assert (row["params.window"], row["params.2048"]) == (3, 5)


def test_longbench_has_a_sheet_for_each_result_and_an_average(tmp_path: Path) -> None:
    results = {"result.json": {"qasper": 10.0, "lcc": 20.0}, "result_o.json": {"qasper": 4.0, "lcc": None}}
    experiment(tmp_path, LONGBENCH, "dpi-x", "dpi", results)
    sheets = pd.read_excel(collect(tmp_path, LONGBENCH)["lb_dpi.xlsx"], sheet_name=None)
    assert set(sheets) == {"result", "result_o"}
    assert sheets["result"]["average"].item() == 15
    assert sheets["result_o"]["average"].item() == 4


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


SQUARES = FakeTask()


def test_standard_errors_stand_behind_their_scores_where_any_is_known(tmp_path: Path) -> None:
    known = {"a": {"score": 41.256, "stderr": 0.804}, "b": 7.0}
    experiment(tmp_path, SQUARES, "dpi-x", "dpi", {"result.json": known})
    experiment(tmp_path, SQUARES, "dpi-y", "dpi", {"result.json": {"a": 3.0, "b": 5.0}})
    written = collect(tmp_path, SQUARES)
    frame = pd.read_excel(written["squares_dpi.xlsx"])
    assert list(frame.columns)[6:] == ["a", "a ±", "b", "average"]
    assert frame["a ±"].tolist() == pytest.approx([0.804, float("nan")], nan_ok=True)
    assert frame["average"].tolist() == pytest.approx([24.128, 4])
    assert "±" not in str(list(pd.read_excel(written["squares_repro.xlsx"]).columns))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in written["squares.md"].read_text().splitlines()]
    assert rows[0] == []
    assert rows[2] == ["experiment", "method", "model", "window", "target", "status", "a", "b", "average"]
    assert rows[4][3:] == ["4096", "16384", "complete", "41.26 ± 0.80", "7.00", "24.13"]
    assert rows[5][3:] == ["4096", "16384", "complete", "3.00", "5.00", "4.00"]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_table_is_written_whole_or_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    folder = experiment(tmp_path, SQUARES, "dpi-x", "dpi", {"result.json": {"a": 1.0}})
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


def test_an_unscored_run_is_listed_and_nothing_scored_is_an_error(tmp_path: Path) -> None:
    experiment(tmp_path, NEEDLE, "dpi-x", "dpi", {})
    with pytest.raises(UserError, match=r"eval\.py --task needle"):
        collect(tmp_path, NEEDLE)
    experiment(tmp_path, NEEDLE, "dpi-y", "dpi", {"result.json": cells(lambda *_: 0.5)})
    assert list(pd.read_excel(collect(tmp_path, NEEDLE)["needle_dpi.xlsx"])["status"]) == ["not scored", "complete"]


def test_lengths_are_columns_in_numerical_order(tmp_path: Path) -> None:
    experiment(tmp_path, PG19, "dpi-x", "dpi", {"result.json": {"1024": 1.0, "10240": 2.0, "2048": 3.0}})
    frame = pd.read_excel(collect(tmp_path, PG19)["pg19_dpi.xlsx"])
    assert list(frame.columns)[-3:] == ["1024", "2048", "10240"]


def test_perplexities_of_nothing_are_no_picture(tmp_path: Path) -> None:
    experiment(tmp_path, PG19, "dpi-x", "dpi", {"result.json": {}})
    assert "pg19.png" not in collect(tmp_path, PG19)


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@SUM(A1)"])
def test_excel_takes_no_name_for_a_formula(tmp_path: Path, name: str) -> None:
    experiment(tmp_path, SQUARES, "dpi-x", "dpi", {"result.json": {name: 1.0}}, params={"=p": "=cmd|' /C calc'!A0"})
    path = collect(tmp_path, SQUARES)["squares_dpi.xlsx"]
    rows = list(openpyxl.load_workbook(path).active.iter_rows())
    found = {cell.value: cell for row in rows for cell in row}
    for value in (name, "=p", "=cmd|' /C calc'!A0"):
        assert found[value].data_type == "s"
        assert found[value].quotePrefix
    assert not found["dpi-x"].quotePrefix
    with zipfile.ZipFile(path) as archive:
        assert b"<f>" not in archive.read("xl/worksheets/sheet1.xml")


def test_control_characters_and_markup_of_a_foreign_run_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / LONGBENCH.folder / "evil|<b>\x1b[2J"
    folder.mkdir(parents=True)
    (folder / "qasper.jsonl").write_text('{"pred": "x"}\n')
    store.write_json(folder / "result.json", {"qasper": 3.25, "a\x00\ud800": 1.0})
    written = collect(tmp_path, LONGBENCH)
    markdown = written["lb.md"].read_text(encoding="utf-8")
    assert "| evil\\|&lt;b&gt;\\\\x1b\\[2J |" in markdown
    assert "\x1b" not in markdown
    frame = pd.read_excel(written["lb_repro.xlsx"])
    assert list(frame["experiment"]) == ["evil|<b>\\x1b[2J"]
    assert "a\\x00\\ud800" in frame.columns


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
