import json
from pathlib import Path

import pytest

from pipeline import store
from tasks import get_task
from tasks.base import Line
from tasks.errors import UserError

LINES = [{"id": "a", "pred": "é\u2028 x"}, {"id": "b", "pred": "1"}, {"id": "c", "pred": "2"}]


def write(path: Path, lines: list[Line]) -> Path:
    path.write_text("".join(store.dump_line(line) for line in lines), encoding="utf-8")
    return path


def test_every_cut_of_the_last_line_is_repaired(tmp_path: Path) -> None:
    whole = write(tmp_path / "x.jsonl", LINES).read_bytes()
    last = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for size in range(last, len(whole) + 1):
        path = tmp_path / "x.jsonl"
        path.write_bytes(whole[:size])
        lines = store.read_lines(path, repair=True)
        complete = size >= len(whole) - 1  # only the newline is missing
        assert lines == (LINES if complete else LINES[:2]), size
        assert path.read_bytes() == (whole if complete else whole[:last]), size


def test_a_cut_last_line_is_refused_without_repair(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", LINES)
    path.write_bytes(path.read_bytes()[:-4])
    before = path.read_bytes()
    with pytest.raises(UserError, match="line 3 is no JSON object"):
        store.read_lines(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("broken", [b'{"id": "a", "pr\n', b"[1]\n", b"\x00\x00\n", b"\xff\n"])
@pytest.mark.parametrize("repair", [True, False])
def test_a_broken_line_elsewhere_is_refused_and_kept(tmp_path: Path, broken: bytes, repair: bool) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(broken + store.dump_line(LINES[0]).encode())
    before = path.read_bytes()
    with pytest.raises(UserError, match="line 1"):
        store.read_lines(path, repair=repair)
    assert path.read_bytes() == before


def test_foreign_files_without_last_newline_or_with_crlf_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"pred": "1"}\r\n\r\n{"pred": "2"}')
    assert store.read_lines(path) == [{"pred": "1"}, {"pred": "2"}]


def test_merge_orders_records_and_keeps_each_once(tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", [LINES[2], {"id": "a", "error": "OOM"}, {"id": "z", "pred": "9"}])
    write(store.part_file(tmp_path, "d", 10), [LINES[1]])
    write(store.part_file(tmp_path, "d", 2), [LINES[0], {"id": "b", "error": "later"}])
    other = write(store.part_file(tmp_path, "my-d", 0), [{"id": "q"}])
    merged = store.merge(tmp_path, "d", ["a", "b", "c", "d"])
    assert merged == [*LINES, {"id": "z", "pred": "9"}]
    assert store.read_lines(tmp_path / "d.jsonl") == merged
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["d.jsonl", other.name])


def test_merge_keeps_the_last_error_of_a_record_that_never_succeeds(tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", [{"id": "a", "error": "first"}, {"id": "a", "error": "second"}])
    assert store.merge(tmp_path, "d", ["a"]) == [{"id": "a", "error": "second"}]


def test_merge_repairs_a_cut_part(tmp_path: Path) -> None:
    part = write(store.part_file(tmp_path, "d", 0), LINES)
    part.write_bytes(part.read_bytes()[:-3])
    assert store.merge(tmp_path, "d", ["a", "b", "c"]) == LINES[:2]
    assert not part.exists()


def test_merge_refuses_another_programs_file(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"pred": "1"}])
    before = path.read_bytes()
    with pytest.raises(UserError, match="another program"):
        store.merge(tmp_path, "d", ["a"])
    assert path.read_bytes() == before


def test_appender_has_the_line_on_disk_when_write_returns(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with store.Appender(path) as appender:
        for number, line in enumerate(LINES, start=1):
            appender.write(line)
            assert store.read_lines(path) == LINES[:number]
    with store.Appender(path) as appender:
        appender.write(LINES[0])
    assert len(store.read_lines(path)) == 4


def test_clear_removes_only_an_experiments_own_files(tmp_path: Path) -> None:
    for name in ("run.json", "d.jsonl", ".part-0-d.jsonl", "result.json", "result_detail.json"):
        (tmp_path / name).write_text("x")
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    store.clear(tmp_path)
    assert list(tmp_path.iterdir()) == [notes]


def test_lock_keeps_a_second_run_out(tmp_path: Path) -> None:
    with store.lock(tmp_path), pytest.raises(UserError, match="another process"), store.lock(tmp_path):
        pass
    with store.lock(tmp_path):
        pass


def test_differences_name_parameters_one_by_one() -> None:
    found = list(store.differences({"a": 1, "p": {"x": 1, "y": 2}}, {"a": 1, "p": {"x": 3, "y": 2}, "b": 0}))
    assert found == ["b was None, is 0", "p.x was 1, is 3"]


@pytest.mark.parametrize("name", ["..", "../../etc", "a/b", ""])
def test_experiment_folder_stays_below_the_results(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="exp_name"):
        store.experiment_folder(tmp_path, get_task("needle"), name)


def test_list_experiments_tells_tasks_in_one_folder_apart(tmp_path: Path) -> None:
    for name, task in (("x", "needle"), ("y", "passkey_retrieval")):
        folder = tmp_path / "needle/pred" / name
        folder.mkdir(parents=True)
        store.write_json(folder / "run.json", {"config": {"task": task}})
    assert [f.name for f in store.list_experiments(tmp_path, get_task("needle"))] == ["x"]
    assert [f.name for f in store.list_experiments(tmp_path, get_task("passkey_retrieval"))] == ["y"]
    with pytest.raises(UserError, match="no experiments"):
        store.list_experiments(tmp_path, get_task("pg19"))


def test_write_json_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    store.write_json(path, {"a": "é"})
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"}
    path.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        store.read_json(path)


def test_links_in_a_folder_are_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "exp"
    folder.mkdir()
    for name in (".lock", "d.jsonl", ".part-0-d.jsonl"):
        (folder / name).symlink_to(victim)
    with pytest.raises(UserError, match=r"\.lock' is a symbolic link"), store.lock(folder):
        pytest.fail("it was taken")
    for path in (folder / "d.jsonl", folder / ".part-0-d.jsonl"):
        with pytest.raises(UserError, match="is a symbolic link"), store.Appender(path):
            pytest.fail("it was opened")
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "it is no JSON object"),
        ({}, "'config' is missing"),
        ({"config": {}}, "'config.task' is missing"),
        ({"config": {"task": 3}}, r"config\.task = 3"),
        ({"config": {"task": "needle", "params": []}}, r"config\.params = \[\]"),
        ({"config": {"task": "needle"}, "window": "4096"}, "window = '4096'"),
        ({"config": {"task": "needle"}, "datasets": {"d": {"records": -1, "limited": False}}}, r"datasets\.d\.records"),
        ({"config": {"task": "needle"}, "datasets": {"d": 3}}, r"datasets\.d = 3"),
        ({"config": {"task": "needle"}, "datasets": None}, "datasets = None"),
    ],
)
def test_a_run_record_of_another_shape_is_named_by_field(tmp_path: Path, content: object, said: str) -> None:
    store.write_json(tmp_path / "run.json", content)
    with pytest.raises(UserError, match=said) as error:
        store.read_run(tmp_path)
    assert f"{str(tmp_path / 'run.json')!r} is no run record" in str(error.value)


@pytest.mark.parametrize("line", ['{"id": [1]}', '{"id": null}', '{"id": {}}'])
def test_an_id_that_is_none_is_named_by_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "d.jsonl").write_text(f'{{"id": "a"}}\n{line}\n')
    with pytest.raises(UserError, match=r"d\.jsonl' line 2: id = "):
        store.read_lines(tmp_path / "d.jsonl")


@pytest.mark.parametrize("broken", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_deep_nesting_and_long_numbers_are_no_lines(tmp_path: Path, broken: str) -> None:
    (tmp_path / "d.jsonl").write_text(f"{broken}\n" + store.dump_line(LINES[0]))
    with pytest.raises(UserError, match="line 1 is no JSON object"):
        store.read_lines(tmp_path / "d.jsonl")


def test_a_field_that_a_line_lacks_is_told_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", LINES)
    with pytest.raises(store.MissingField) as error:
        store.read_lines(path)[1]["answer"]
    assert error.value.place == f"{str(path)!r} line 2"
    assert str(error.value) == "'answer'"


@pytest.mark.parametrize(
    ("line", "failed"),
    [
        ({"id": "a", "pred": "x"}, False),
        ({"id": "a", "pred": "", "error": None}, False),
        ({"id": "a", "loss_sum": 3.0}, False),
        ({"id": "a", "error": None}, True),
        ({"id": "a", "error": ""}, True),
        ({"id": "a", "pred": None}, True),
        ({"llama_pred": None}, True),
    ],
)
def test_null_means_something_definite(line: Line, failed: bool) -> None:
    assert store.is_failed(line) == failed


def test_a_broken_run_record_is_listed_for_whoever_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "needle/pred/x"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{")
    assert store.list_experiments(tmp_path, get_task("needle")) == [folder]
    with pytest.raises(UserError, match="not valid JSON"):
        store.belongs_to(folder, get_task("needle"))
