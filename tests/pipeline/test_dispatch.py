"""Several workers share records and experiments. Here they are objects of this process."""

import csv
import json
import os
from pathlib import Path

import pytest

from pipeline import store
from pipeline.config import ExperimentConfig
from pipeline.engine import ModelEngine
from pipeline.model_loader import EngineLoader
from pipeline.runner import Outcome
from pipeline.worker import Worker
from tests.pipeline.fake_pool import FakePool, alone, experiments, files, run, settings, write_configurations
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


@pytest.mark.parametrize("keys", [(), ("batch_size=3",)], ids=["one by one", "batches"])
def test_several_workers_give_the_files_of_one_process(place: Path, keys: tuple[str, ...]) -> None:
    one = alone("one", "one.toml", *(f"--set={key}" for key in keys))
    pool = FakePool(3, seed=1)
    [(_, outcomes)] = run(pool, experiments(*keys), place / "three")
    assert outcomes == {"needle": Outcome(8, 0, 0)}
    assert files(place / "three") == files(one)
    assert settings(place / "three") == settings(one)
    folder = place / "three/needle/pred/dpi-tiny"
    assert json.loads((folder / "run.json").read_text())["processes"] == 3
    rows = list(csv.DictReader((folder / "times.csv").open()))
    assert sorted(row["id"] for row in rows) == sorted(line["id"] for line in store.read_lines(folder / "needle.jsonl"))
    assert len({worker for worker, question, _ in pool.questions if question == "begin"}) == 3
    with store.lock(folder):
        pass


def test_a_sweep_spreads_over_workers_and_each_model_is_loaded_where_it_is_needed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = alone("one", "sweep.toml")
    loads = []
    load = EngineLoader._load

    def counted(self: EngineLoader, cfg: ExperimentConfig) -> ModelEngine:
        loads.append(cfg.method)
        return load(self, cfg)

    monkeypatch.setattr(EngineLoader, "_load", counted)
    cfgs = experiments(cfg="sweep.toml")
    assert len(cfgs) == 6
    pool = FakePool(2, seed=2)
    found = run(pool, cfgs, place / "two")
    assert sorted(job.number for job, _ in found) == [1, 2, 3, 4, 5, 6]
    assert all(outcomes == {"needle": Outcome(8, 0, 0)} for _, outcomes in found)
    assert files(place / "two") == files(one)
    assert settings(place / "two") == settings(one)
    asked = [(question, arguments[0].exp_name) for _, question, arguments in pool.questions if question == "begin"]
    first = [name for _, name in asked].index(cfgs[1].exp_name)
    assert ("begin", cfgs[0].exp_name) in asked[first:], "the second begins before the first has ended"
    assert 6 <= len(loads) < 12, "not every worker loads every model"


def test_the_same_experiment_twice_runs_once(place: Path) -> None:
    pool = FakePool(3)
    found = run(pool, experiments() * 2, place / "two")
    assert [outcomes for _, outcomes in found] == [{"needle": Outcome(8, 0, 0)}] * 2
    assert sum(len(asked[2]) for _, question, asked in pool.questions if question == "begin") == 8
    assert len((place / "two/needle/pred/dpi-tiny/needle.jsonl").read_text().splitlines()) == 8


def test_a_run_goes_on_and_loads_nothing_where_all_is_done(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone("two", "one.toml", "--limit", "3")
    pool = FakePool(2)
    run(pool, experiments(), place / "two")
    assert sum(len(asked[2]) for _, question, asked in pool.questions if question == "begin") == 5
    monkeypatch.setattr(EngineLoader, "_load", lambda self, cfg: pytest.fail("nothing is to be loaded"))
    [(_, outcomes)] = run(FakePool(2), experiments(), place / "two")
    assert outcomes == {"needle": Outcome(8, 0, 0)}


def test_relative_paths_are_those_of_the_run(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    worker = Worker(place)
    os.chdir(elsewhere)
    worker.hello()
    assert Path.cwd() == place
    reply = Worker(place / "absent").answer("hello", ())
    assert reply.mistake is not None
    assert "No such file or directory" in reply.mistake
