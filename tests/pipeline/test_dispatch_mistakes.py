"""Workers that die, users' mistakes, and machines that differ: what ends, what goes on, and what is left."""

import csv
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline import store
from pipeline.config import ExperimentConfig
from pipeline.dispatch import MOST_IN_VAIN, MOST_STARTS
from pipeline.engine import ModelEngine
from pipeline.model_loader import EngineLoader
from pipeline.runner import Outcome
from pipeline.waiting import MOST_TRIES
from pipeline.worker import Question, Reply, Worker
from tasks.errors import UserError
from tests.pipeline.fake_pool import ONE, FakePool, alone, experiments, files, run, write_configurations
from tests.pipeline.small import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with configurations."""
    monkeypatch.chdir(tmp_path)
    write_configurations(tmp_path, model)
    return tmp_path


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("rows", [1, 3])
def test_records_of_a_killed_worker_go_to_others(place: Path, seed: int, rows: int) -> None:
    """Half of all questions about records kill the worker, until eight have died."""
    chance, deaths = random.Random(seed), Counter[str]()

    def kills(worker: int, question: Question, arguments: tuple[Any, ...]) -> bool:
        if question in ("begin", "go_on") and deaths.total() < 8 and chance.random() < 0.5:
            deaths[question] += 1
            return True
        return False

    pool = FakePool(3, seed, kills)
    [(_, outcomes)] = run(pool, experiments(f"batch_size={rows}"), place / "three")
    assert outcomes == {"needle": Outcome(8, 0, 0)} or deaths.total() >= MOST_TRIES
    assert len(pool.renewed) == deaths.total() >= 4
    found = {line["id"]: line for line in store.read_lines(place / "three/needle/pred/dpi-tiny/needle.jsonl")}
    wanted = store.read_lines(alone("one") / "needle/pred/dpi-tiny/needle.jsonl")
    assert list(found) == [line["id"] for line in wanted], "each once, in order"
    rows_of_times = csv.DictReader((place / "three/needle/pred/dpi-tiny/times.csv").open())
    assert sorted(row["id"] for row in rows_of_times) == sorted(found), "what has a line is not predicted again"
    for line in wanted:
        assert store.is_failed(found[line["id"]]) or found[line["id"]] == line


@pytest.mark.parametrize("rows", [1, 3])
def test_a_record_that_kills_every_worker_has_failed_and_the_others_have_not(
    place: Path, rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = {line["id"]: line for line in store.read_lines(alone("one") / "needle/pred/dpi-tiny/needle.jsonl")}
    poison = sorted(wanted)[3]
    dead = []

    def kills(worker: int, question: Question, arguments: tuple[Any, ...]) -> bool:
        hit = question == "begin" and any(record["id"] == poison for record in arguments[2])
        dead.append(worker) if hit else None
        return hit

    [(_, outcomes)] = run(FakePool(2, 5, kills), experiments(f"batch_size={rows}"), place / "two")
    assert outcomes == {"needle": Outcome(8, 1, 0)}
    assert len(dead) == MOST_TRIES
    path = place / "two/needle/pred/dpi-tiny/needle.jsonl"
    found = {line["id"]: line for line in store.read_lines(path)}
    assert found.pop(poison)["error"] == f"{MOST_TRIES} workers died over it; the last one: it was killed"
    assert found == {identity: line for identity, line in wanted.items() if identity != poison}
    assert f"record {poison} failed" in caplog.text

    pool = FakePool(2)
    run(pool, experiments(f"batch_size={rows}"), place / "two")
    assert [[record["id"] for record in asked[2]] for _, question, asked in pool.questions if question == "begin"] == [
        [poison]
    ], "the same command tries only that one"
    assert files(place / "two") == files(place / "one")


def test_a_mistake_lets_what_is_under_way_end_and_nothing_else_begin(place: Path, model: Path) -> None:
    (wrong := place / "wrong").mkdir()
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, wrong)
    cfgs = experiments("exp_name=a") + experiments("exp_name=b", f"model='{wrong}'") + experiments("exp_name=c")
    with pytest.raises(UserError, match=r"^b: cannot load the model"):
        run(FakePool(2), cfgs, place / "two")
    assert len((place / "two/needle/pred/a/needle.jsonl").read_text().splitlines()) == 8
    assert sorted(path.name for path in (place / "two/needle/pred").iterdir()) == ["a"], "nothing is written of others"


@pytest.mark.parametrize("seed", range(4))
def test_records_of_an_experiment_that_ended_in_a_mistake_go_nowhere(
    place: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Also where the worker that had them dies while it turns to another experiment."""
    mistakes: list[Worker] = []
    go_on = Worker.go_on

    def mistaken(worker: Worker) -> Any:
        assert worker._batches is not None
        if worker._batches[0].exp_name == "a":
            mistakes.append(worker)
            raise UserError("a book is gone")
        return go_on(worker)

    monkeypatch.setattr(Worker, "go_on", mistaken)
    died: list[int] = []

    def kills(worker: int, question: Question, arguments: tuple[Any, ...]) -> bool:
        dies = bool(mistakes) and not died and question == "prepare" and arguments[0].exp_name == "b"
        died.extend([worker] * dies)
        return dies

    cfgs = experiments("exp_name=a") + experiments("exp_name=b", "seed=7")
    with pytest.raises(UserError, match="a: a book is gone"):
        run(FakePool(2, seed, kills), cfgs, place / "two")
    lines = (place / "two/needle/pred/b/needle.jsonl").read_text().splitlines()
    wanted = alone("one", "one.toml", "--set=exp_name=b", "--set=seed=7") / "needle/pred/b/needle.jsonl"
    assert lines == wanted.read_text().splitlines()


def test_a_folder_that_another_run_holds_is_refused(place: Path) -> None:
    folder = place / "two/needle/pred/dpi-tiny"
    folder.mkdir(parents=True)
    with store.lock(folder), pytest.raises(UserError, match="another process is writing"):
        run(FakePool(2), experiments(), place / "two")
    run(FakePool(2), experiments(), place / "two")


def test_what_was_made_otherwise_is_refused_and_left_alone(place: Path) -> None:
    run(FakePool(2), experiments("limit=3"), place / "two")
    before = files(place / "two")
    with pytest.raises(UserError, match=r"another configuration: params\.chunk_coe was 16, is 32"):
        run(FakePool(2), experiments("params.chunk_coe=32"), place / "two")
    assert files(place / "two") == before
    run(FakePool(2), experiments("params.chunk_coe=32"), place / "two", overwrite=True)
    assert files(place / "two") != before


@pytest.mark.parametrize("question", ["hello", "check", "prepare"])
def test_workers_that_die_before_they_predict_end_the_run(place: Path, question: Question) -> None:
    pool = FakePool(2, 3, lambda worker, asked, _: asked == question)
    with pytest.raises(UserError, match="end before they predict anything; the last one: it was killed"):
        run(pool, experiments(), place / "two")
    assert not (place / "two").exists()
    assert len(pool.renewed) == 2 * (MOST_STARTS - 1)


def test_one_worker_that_never_starts_does_not_hold_the_others_up(place: Path) -> None:
    pool = FakePool(3, 3, lambda worker, asked, _: worker == 1)
    [(_, outcomes)] = run(pool, experiments(), place / "two")
    assert outcomes == {"needle": Outcome(8, 0, 0)}
    assert pool.renewed == [1] * (MOST_STARTS - 1)


def test_deaths_without_end_end_the_run(place: Path) -> None:
    pool = FakePool(2, 3, lambda worker, asked, _: asked == "begin")
    with pytest.raises(UserError, match="end before they predict anything"):
        run(pool, experiments(), place / "two")
    assert len(pool.renewed) == MOST_IN_VAIN - 1
    run(FakePool(2), experiments(), place / "two")
    alone("one")
    found = place / "two/needle/pred/dpi-tiny/needle.jsonl"
    assert len({line["id"] for line in store.read_lines(found)}) == 8
    assert files(place / "two") == files(place / "one")


def test_a_worker_with_other_files_is_refused(place: Path) -> None:
    """PG19's books are read where the model is."""
    (place / "books").mkdir()
    book = place / "books" / "a.txt"
    book.write_text("the grass is green " * 40)
    text = Path("one.toml").read_text().replace(ONE, 'data_dir = "books"\n').replace("needle", "pg19")
    Path("pg19.toml").write_text(text)

    def changes(worker: int, question: Question, arguments: tuple[Any, ...]) -> bool:
        if question == "begin":
            book.write_text("the sky is blue " * 40)
        return False

    with pytest.raises(UserError, match=r"^dpi-tiny: data_dir = 'books' has other files than .*; share the folder"):
        run(FakePool(2, 0, changes), experiments(cfg="pg19.toml"), place / "two")
    assert not any(files(place / "two").values())


def test_a_mistake_names_the_machine_that_it_came_up_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that came up here names none, nor does a worker's where all are on this machine."""

    def lost(*_: Any, **__: Any) -> None:
        raise UserError("a shard is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "prepare", lost)
        with pytest.raises(UserError, match=r"^dpi-tiny: on away: a shard is gone$"):
            run(FakePool(1, hosts=["away"]), experiments(), place / "two")
        with pytest.raises(UserError, match=r"^dpi-tiny: a shard is gone$"):
            run(FakePool(2), experiments(), place / "two")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.dispatch.read_experiment", lost)
        with pytest.raises(UserError, match=r"^dpi-tiny: a shard is gone$"):
            run(FakePool(2, hosts=["away", "there"]), experiments(), place / "two")


@pytest.mark.parametrize("question", ["hello", "prepare"])
def test_a_worker_that_died_may_come_back_on_another_machine(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, question: Question
) -> None:
    died: list[int] = []

    def kills(worker: int, asked: Question, arguments: tuple[Any, ...]) -> bool:
        dies = not died and asked == "check"
        died.extend([worker] * dies)
        return dies

    answer = Worker.answer

    def gone(worker: Worker, asked: Question, arguments: tuple[Any, ...]) -> Reply:
        if died and asked == question:
            monkeypatch.setattr(worker, "_folder", place / "absent")
            return answer(worker, "hello", ())
        return answer(worker, asked, arguments)

    monkeypatch.setattr(Worker, "answer", gone)
    with pytest.raises(UserError, match=r"on second: the working directory .*absent': No such file"):
        run(FakePool(1, 0, kills, ["first", "second"]), experiments(), place / "two")
    assert "worker 1 of 1 on first ended: it was killed" in caplog.text


@pytest.mark.parametrize("seed", range(2))
def test_a_broken_line_ends_its_experiment_alone(place: Path, seed: int) -> None:
    """Also one that comes while the experiment is under way, and is found at its end."""
    wanted = alone("one", "one.toml", "--set=exp_name=b", "--set=limit=12") / "needle/pred/b/needle.jsonl"

    def breaks(worker: int, question: Question, arguments: tuple[Any, ...]) -> bool:
        path = place / "two/needle/pred/a/needle.jsonl"
        if path.exists() and not path.read_text().startswith("no"):
            path.write_text("no object\n" + path.read_text())
        return False

    cfgs = experiments("exp_name=a", "limit=2") + experiments("exp_name=b", "limit=12")
    with pytest.raises(UserError, match=r"^a: '.*needle\.jsonl' line 1 is no JSON object"):
        run(FakePool(2, seed, breaks), cfgs, place / "two")
    assert (place / "two/needle/pred/b/needle.jsonl").read_bytes() == wanted.read_bytes()
    for name in ("a", "b"):
        with store.lock(place / "two/needle/pred" / name):
            pass


def test_what_a_dead_worker_leaves_ends_its_experiment_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records' failures are written down, which may not be possible."""

    def full(*_: Any) -> None:
        raise UserError("no space left")

    monkeypatch.setattr("pipeline.shared_run.SharedRun.put_back", full)

    def kills(worker: int, question: Question, arguments: tuple[Any, ...]) -> bool:
        return question == "begin" and arguments[0].exp_name == "a"

    with pytest.raises(UserError, match=r"^a: no space left$"):
        run(FakePool(2, 1, kills), experiments("exp_name=a") + experiments("exp_name=b"), place / "two")
    assert len((place / "two/needle/pred/b/needle.jsonl").read_text().splitlines()) == 8


def test_machines_with_different_copies_of_a_model_are_refused(
    place: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of the weights is another one; the worker that has them loads nothing."""
    copies = [place / "first", place / "second"]
    for folder in copies:
        shutil.copytree(model, folder)
    weights = copies[1] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (here := place / "model").symlink_to(copies[0])

    def turns(worker: int, question: Question, arguments: tuple[Any, ...]) -> bool:
        here.unlink()
        here.symlink_to(copies[worker])
        return False

    loaded = set()
    load = EngineLoader._load

    def watched(self: EngineLoader, cfg: ExperimentConfig) -> ModelEngine:
        loaded.add(here.readlink().name)
        return load(self, cfg)

    monkeypatch.setattr(EngineLoader, "_load", watched)
    with pytest.raises(UserError, match=r"different files of the model: .*; copy the model anew$") as caught:
        run(FakePool(2, 0, turns, ["one", "other"]), experiments(f"model='{here}'"), place / "two")
    found = re.search(
        r"on (\w+): the machines .*: (\w+) has {'config.json': .*}, (\w+) {'config.json': ", str(caught.value)
    )
    assert found is not None
    assert found[1] == found[3] != found[2], "the one that was asked to load, after the one that checked"
    assert len(loaded) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_refusal_leaves_the_folder_as_it_was(
    place: Path, model: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """In one process, and with workers: also a line that was cut off, and what another process left to be merged."""
    copy = shutil.copytree(model, place / "copy")
    keys = (f"model='{copy}'", "exp_name=a")
    alone("two", "one.toml", *(f"--set={key}" for key in (*keys, "limit=3")))
    folder = place / "two/needle/pred/a"
    lines = (folder / "needle.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "needle.jsonl").write_bytes(lines[0] + lines[1][:9])
    (folder / ".part-1-needle.jsonl").write_bytes(lines[2])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 1.5}))
    monkeypatch.setattr("platform.python_version", lambda: "4.0")

    def go_on(*more: str) -> object:
        if workers:
            return run(FakePool(workers), experiments(*keys, *more), place / "two")
        return alone("two", "one.toml", *(f"--set={key}" for key in (*keys, *more)))

    with pytest.raises(UserError, match=r"decoded with other settings: generation\.set_aside"):
        go_on()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (copy / "generation_config.json").write_text(json.dumps(settings))
    go_on("limit=4")
    assert len(store.read_lines(folder / "needle.jsonl")) == 4
    assert json.loads((folder / "run.json").read_text())["versions"]["python"] == "4.0"
