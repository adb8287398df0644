import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from pipeline import store
from pipeline.config import ExperimentConfig
from pipeline.experiment import read_records, run_experiment
from pipeline.runner import Outcome, _pending, run_records, select_datasets, select_records
from tasks.base import Engine, Line, Record
from tasks.errors import UserError
from tasks.needle import NeedleOptions
from tests.pipeline.fake_task import FakeTask, FakeWorkers
from tests.pipeline.small import config, old_run_config

FORK = multiprocessing.get_context("fork")


def run(
    task: FakeTask,
    folder: Path,
    cfg: ExperimentConfig | None = None,
    workers: FakeWorkers | None = None,
    engine: Callable[[], Any] = object,
) -> dict[str, Outcome]:
    cfg = cfg or config()
    records = {name: select_records(task, cfg, name) for name in select_datasets(task, cfg)}
    return run_records(task, cfg.options, engine, folder, records, workers or FakeWorkers())


def predictions(folder: Path, dataset: str = "one") -> list[tuple[str, int | None]]:
    return [(line["id"], line.get("pred")) for line in store.read_lines(folder / f"{dataset}.jsonl")]


def test_a_run_writes_every_record_in_order(tmp_path: Path) -> None:
    outcomes = run(FakeTask(), tmp_path)
    assert outcomes == {"one": Outcome(5, 0, 0), "two": Outcome(5, 0, 0)}
    for dataset in ("one", "two"):
        assert predictions(tmp_path, dataset) == [(str(n), n * n) for n in range(5)]


def test_a_second_run_does_nothing_and_loads_no_model(tmp_path: Path) -> None:
    run(FakeTask(), tmp_path)
    before = (tmp_path / "one.jsonl").read_bytes()
    task = FakeTask()
    run(task, tmp_path, engine=lambda: pytest.fail("the model was loaded"))
    assert task.predicted == []
    assert (tmp_path / "one.jsonl").read_bytes() == before


def test_failed_records_are_written_down_and_only_they_run_again(tmp_path: Path) -> None:
    outcomes = run(FakeTask(broken=["1", "3"]), tmp_path)
    assert outcomes["one"] == Outcome(5, 2, 0)
    line = store.read_lines(tmp_path / "one.jsonl")[1]
    assert line == {"id": "1", "error": "RuntimeError: out of memory"}
    task = FakeTask(broken=["3"])
    assert run(task, tmp_path)["two"] == Outcome(5, 1, 0)
    assert sorted(task.predicted) == ["one/1", "one/3", "two/1", "two/3"]
    task = FakeTask()
    run(task, tmp_path)
    assert sorted(task.predicted) == ["one/3", "two/3"]
    assert predictions(tmp_path) == [(str(n), n * n) for n in range(5)]


def test_a_users_mistake_inside_a_record_ends_the_run(tmp_path: Path) -> None:
    class Mistaken(FakeTask):
        def predict(self, engine: Engine, options: NeedleOptions, dataset: str, record: Record) -> Line:
            raise UserError("no such folder")

    with pytest.raises(UserError, match="no such folder"):
        run(Mistaken(), tmp_path)


def test_limit_test_and_tasks_choose_records(tmp_path: Path) -> None:
    task = FakeTask()
    assert [r["id"] for r in select_records(task, config(limit=2), "one")] == ["0", "1"]
    assert select_datasets(task, config(tasks=["three", "one", "three"])) == ["three", "one"]
    assert list(read_records(task, config(test=True))) == ["one"]
    assert len(select_records(task, config(test=True, limit=4), "one")) == 1
    with pytest.raises(UserError, match="unknown data set 'four'"):
        select_datasets(task, config(tasks=["four"]))
    with pytest.raises(UserError, match="no records"):
        select_records(FakeTask(count=0), config(), "one")


def test_a_larger_limit_goes_on_and_a_smaller_one_keeps_what_is_there(tmp_path: Path) -> None:
    run(FakeTask(), tmp_path, config(limit=2))
    task = FakeTask()
    run(task, tmp_path, config(limit=4))
    assert task.predicted == ["one/2", "one/3", "two/2", "two/3"]
    run(FakeTask(), tmp_path, config(limit=1))
    assert [identity for identity, _ in predictions(tmp_path)] == ["0", "1", "2", "3"]


def test_records_with_equal_ids_are_a_bug_that_shows(tmp_path: Path) -> None:
    class Twice(FakeTask):
        def records(self, options: NeedleOptions, dataset: str) -> Iterable[Record]:
            return [{"id": "a"}, {"id": "a"}]

    with pytest.raises(ValueError, match="share an id"):
        select_records(Twice(), config(), "one")


def run_in_child(task: FakeTask, folder: Path, workers: FakeWorkers) -> None:
    # tqdm's own lock is shared with forked children; one that is killed while holding it would stop all others.
    tqdm.set_lock(threading.RLock())
    run(task, folder, workers=workers)


def start(task: FakeTask, folder: Path, count: int) -> list[ForkProcess]:
    barrier = FORK.Barrier(count) if count > 1 else None
    children = []
    for rank in range(count):
        child = FORK.Process(target=run_in_child, args=(task, folder, FakeWorkers(rank, count, barrier)), daemon=True)
        child.start()
        children.append(child)
    return children


@pytest.mark.parametrize("count", [1, 2])
def test_killed_at_random_moments_every_record_ends_up_once(tmp_path: Path, count: int) -> None:
    """SIGKILL twenty times, then a last run that may finish."""
    records = 60
    task = FakeTask(count=records, seconds=0.01 * count)
    chance = random.Random(count)
    kills = 0
    for _ in range(20):
        children = start(task, tmp_path, count)
        time.sleep(chance.uniform(0.0, 0.05))
        for child in children:
            kills += child.is_alive()
            if child.is_alive() and child.pid is not None:
                os.kill(child.pid, signal.SIGKILL)
            child.join()
    assert kills >= 10, "the runs finished before they were killed; the test shows nothing"
    for child in start(task, tmp_path, count):
        child.join(30)
        assert child.exitcode == 0
    for dataset in ("one", "two"):
        assert predictions(tmp_path, dataset) == [(str(n), n * n) for n in range(records)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "two.jsonl"]


def test_processes_share_the_records_out_without_overlap(tmp_path: Path) -> None:
    wanted = [{"id": str(number)} for number in range(7)]
    (tmp_path / "one.jsonl").write_text('{"id": "4"}\n')
    shares = [[r["id"] for r in _pending(tmp_path, "one", wanted, FakeWorkers(rank, 3))] for rank in range(3)]
    assert shares == [["0", "3", "6"], ["1"], ["2", "5"]]


def test_two_processes_give_the_file_of_one(tmp_path: Path) -> None:
    single, double = tmp_path / "single", tmp_path / "double"
    single.mkdir()
    double.mkdir()
    run(FakeTask(count=7), single)
    for child in start(FakeTask(count=7), double, 2):
        child.join(30)
    assert (double / "one.jsonl").read_bytes() == (single / "one.jsonl").read_bytes()


def test_another_number_of_processes_goes_on(tmp_path: Path) -> None:
    run(FakeTask(count=7, broken=["2"]), tmp_path)
    for child in start(FakeTask(count=9), tmp_path, 3):
        child.join(30)
    assert predictions(tmp_path) == [(str(n), n * n) for n in range(9)]


@pytest.fixture
def fake_registry(monkeypatch: pytest.MonkeyPatch) -> FakeTask:
    task = FakeTask()
    monkeypatch.setattr("pipeline.experiment.get_task", lambda name: task)
    return task


def experiment(tmp_path: Path, cfg: ExperimentConfig, **options: Any) -> dict[str, Outcome]:
    engine: Any = object()
    return run_experiment(cfg, tmp_path, FakeWorkers(), lambda cfg: engine, window=64, **options)


def test_run_record_holds_what_a_reader_needs(tmp_path: Path, fake_registry: FakeTask) -> None:
    experiment(tmp_path, config(seed=7, limit=3, params={"factor": 2}))
    run = json.loads((tmp_path / "needle/pred/some-4k-to-8k/run.json").read_text())
    assert run["config"]["params"] == {"factor": 2}
    assert run["seed"] == 7
    assert run["window"] == 64
    assert run["versions"]["torch"]
    assert run["versions"]["python"]
    assert "git_revision" in run
    assert run["datasets"] == {name: {"records": 3, "limited": True} for name in ("one", "two")}


def test_the_run_record_counts_the_largest_run(tmp_path: Path, fake_registry: FakeTask) -> None:
    path = tmp_path / "needle/pred/some-4k-to-8k/run.json"
    counts = []
    for keys in ({"limit": 2}, {"limit": 4}, {"limit": 3}, {"tasks": ["three"]}, {"limit": 5}, {}, {"limit": 5}):
        experiment(tmp_path, config(**keys))
        counts.append({name: tuple(entry.values()) for name, entry in json.loads(path.read_text())["datasets"].items()})
    assert counts[:3] == [{"one": (n, True), "two": (n, True)} for n in (2, 4, 4)]
    assert counts[3] == {**counts[2], "three": (5, False)}
    assert counts[5] == counts[6] == dict.fromkeys(("one", "two", "three"), (5, False))


def test_another_configuration_is_refused_by_what_differs_and_overwrite_begins_anew(
    tmp_path: Path, fake_registry: FakeTask
) -> None:
    experiment(tmp_path, config(seed=7, params={"factor": 2}))
    path = tmp_path / "needle/pred/some-4k-to-8k/one.jsonl"
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"params\.factor was 2, is 4; seed was 7, is 42") as error:
        experiment(tmp_path, config(params={"factor": 4}))
    assert "--overwrite" in str(error.value)
    assert path.read_bytes() == before
    fake_registry.predicted.clear()
    experiment(tmp_path, config(params={"factor": 4}), overwrite=True)
    assert len(fake_registry.predicted) == 10


def test_overwrite_keeps_the_old_results_if_the_new_model_cannot_be_loaded(
    tmp_path: Path, fake_registry: FakeTask
) -> None:
    experiment(tmp_path, config())
    path = tmp_path / "needle/pred/some-4k-to-8k/one.jsonl"
    before = path.read_bytes()

    def no_model(cfg: ExperimentConfig) -> Engine:
        raise UserError("cannot load the model")

    with pytest.raises(UserError, match="cannot load"):
        run_experiment(config(model="n"), tmp_path, FakeWorkers(), no_model, window=64, overwrite=True)
    assert path.read_bytes() == before


def test_a_run_that_predicted_nothing_leaves_the_name_free(tmp_path: Path, fake_registry: FakeTask) -> None:
    def no_model(cfg: ExperimentConfig) -> Engine:
        raise UserError("cannot load the model")

    with pytest.raises(UserError, match="cannot load"):
        run_experiment(config(model="misspelt", limit=4), tmp_path, FakeWorkers(), no_model, window=64)
    experiment(tmp_path, config(model="right", limit=3))
    run = json.loads((tmp_path / "needle/pred/some-4k-to-8k/run.json").read_text())
    assert run["config"]["model"] == "right"
    assert run["datasets"]["one"]["records"] == 3


@pytest.mark.parametrize(
    ("old", "differs"),
    [
        ({}, None),
        ({"step": 512, "stride": 100}, None),  # another benchmark's
        ({"times": 3}, "times was 3, is 20"),
        ({"unheard_of": 3}, "unheard_of was 3, is None"),
    ],
)
def test_a_run_of_version_01_goes_on_if_its_own_keys_are_equal(
    tmp_path: Path,
    fake_registry: FakeTask,
    old: dict[str, object],
    differs: str | None,
) -> None:
    experiment(tmp_path, config(limit=2))
    path = tmp_path / "needle/pred/some-4k-to-8k/run.json"
    store.write_json(path, {**store.read_json(path), "config": old_run_config(limit=2, **old)})
    fake_registry.predicted.clear()
    if differs is None:
        experiment(tmp_path, config())
        assert len(fake_registry.predicted) == 6
        assert store.read_json(path)["config"] == config().flat()
    else:
        with pytest.raises(UserError, match=differs):
            experiment(tmp_path, config())


def test_files_of_another_program_are_not_touched(tmp_path: Path, fake_registry: FakeTask) -> None:
    folder = tmp_path / "needle/pred/some-4k-to-8k"
    folder.mkdir(parents=True)
    (folder / "one.jsonl").write_text('{"pred": 1}\n')
    with pytest.raises(UserError, match=r"no run\.json"):
        experiment(tmp_path, config())
    assert (folder / "one.jsonl").read_text() == '{"pred": 1}\n'


class Odd(FakeTask):
    """A prediction of one's choice for record 1."""

    def __init__(self, line: Line | Exception) -> None:
        super().__init__()
        self.line = line

    def predict(self, engine: Engine, options: NeedleOptions, dataset: str, record: Record) -> Line:
        if record["id"] != "1":
            return super().predict(engine, options, dataset, record)
        if isinstance(self.line, Exception):
            raise self.line
        return self.line


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_no_file_can_hold_is_a_failed_record(tmp_path: Path, value: object) -> None:
    assert run(Odd({"pred": value}), tmp_path)["one"] == Outcome(5, 1, 0)
    json.loads((tmp_path / "one.jsonl").read_text().splitlines()[1], parse_constant=pytest.fail)
    assert run(FakeTask(), tmp_path)["one"] == Outcome(5, 0, 0)


def test_a_prediction_with_a_lone_surrogate_is_kept(tmp_path: Path) -> None:
    assert run(Odd({"pred": "a \ud800 b"}), tmp_path)["one"] == Outcome(5, 0, 0)
    assert store.read_lines(tmp_path / "one.jsonl")[1] == {"id": "1", "pred": "a \ud800 b"}
    task = FakeTask()
    run(task, tmp_path)
    assert task.predicted == []


def test_an_error_with_a_lone_surrogate_is_kept_and_its_record_runs_again(tmp_path: Path) -> None:
    assert run(Odd(ValueError("no \udcff here")), tmp_path)["one"] == Outcome(5, 1, 0)
    assert store.read_lines(tmp_path / "one.jsonl")[1] == {"id": "1", "error": "ValueError: no \udcff here"}
    task = FakeTask()
    run(task, tmp_path)
    assert task.predicted == ["one/1", "two/1"]


def test_a_lone_surrogate_in_an_id_does_not_run_again(tmp_path: Path) -> None:
    class Named(FakeTask):
        def records(self, options: NeedleOptions, dataset: str) -> Iterable[Record]:
            return [{"id": "book \ud800", "number": 3}]

    run(Named(), tmp_path)
    task = Named()
    assert run(task, tmp_path)["one"] == Outcome(1, 0, 0)
    assert task.predicted == []


def test_a_record_of_before_with_nan_runs_again(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(
        '{"id": "0", "pred": NaN}\n{"id": "1", "pred": 1e999}\n{"id": "2", "pred": 4}\n'
    )
    task = FakeTask(count=3)
    assert run(task, tmp_path)["one"] == Outcome(3, 0, 0)
    assert task.predicted[:2] == ["one/0", "one/1"]
    assert "one/2" not in task.predicted


def test_null_is_no_prediction_and_runs_again(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"id": "0", "pred": null}\n{"id": "1", "error": null, "pred": 1}\n')
    task = FakeTask(count=2)
    run(task, tmp_path)
    assert task.predicted == ["one/0", "two/0", "two/1"]


def test_the_configuration_is_compared_again_under_the_lock(
    tmp_path: Path, fake_registry: FakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run begins between the first look and the lock."""
    real = store.lock
    experiment(tmp_path / "other", config(seed=7))
    folder = tmp_path / "needle/pred/some-4k-to-8k"

    def late(where: Path) -> Any:
        for path in (tmp_path / "other/needle/pred/some-4k-to-8k").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return real(where)

    monkeypatch.setattr(store, "lock", late)
    with pytest.raises(UserError, match="seed was 7, is 42"):
        experiment(tmp_path, config())
    assert store.read_json(folder / "run.json")["seed"] == 7


def test_a_record_of_version_01_trusted_no_code(tmp_path: Path, fake_registry: FakeTask) -> None:
    experiment(tmp_path, config(limit=2))
    path = tmp_path / "needle/pred/some-4k-to-8k/run.json"
    store.write_json(path, {**store.read_json(path), "config": old_run_config(limit=2)})
    with pytest.raises(UserError, match="trust_remote_code was False, is True"):
        experiment(tmp_path, config(trust_remote_code=True))


def test_memory_that_cannot_be_given_back_does_not_lose_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", broken)
    assert run(FakeTask(broken=["1"]), tmp_path)["one"] == Outcome(5, 1, 0)
    assert store.read_lines(tmp_path / "one.jsonl")[1]["error"] == "RuntimeError: out of memory"
