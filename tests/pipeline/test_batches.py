"""Which records are generated together, and what happens when a batch does not fit or a record fails."""

import gc
import json
import logging
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from models.DPI import build_method, install
from pipeline import store
from pipeline.batches import AUTO_RECORDS, Batches, BatchSize
from pipeline.config import ExperimentConfig
from pipeline.engine import ModelEngine
from pipeline.experiment import batch_size_of, run_experiment
from pipeline.runner import Outcome, run_records, select_records
from tasks import get_task
from tasks.base import Dialogue, Generation, GenerationTask, Line, Record, Request, Task
from tasks.errors import UserError
from tasks.needle import NeedleOptions
from tests.models.DPI.helpers import CHUNKS
from tests.pipeline.fake_task import FakeTask, FakeWorkers
from tests.pipeline.small import config, tiny_model, word_tokenizer

LENGTHS = (5, 90, 40, 41, 7, 60, 12, 3, 88, 30, 31)


class Echo(GenerationTask):
    """A record is a prompt of so many ones; a prediction is what the engine says. `turns` is how often it is asked."""

    name, label, folder, prefix = FakeTask.name, "Echo", FakeTask.folder, "echo"
    Options = NeedleOptions
    score, columns = FakeTask.score, FakeTask.columns

    def __init__(self, lengths: Sequence[int] = LENGTHS, turns: int = 1) -> None:
        self.lengths = lengths
        self.turns = turns

    def datasets(self) -> list[str]:
        return ["one"]

    def records(self, options: NeedleOptions, dataset: str) -> Iterable[Record]:
        return ({"id": str(number), "length": length} for number, length in enumerate(self.lengths))

    def dialogue(self, options: NeedleOptions, dataset: str, record: Record, tokenizer: Any) -> Dialogue:
        if record["length"] < 0:
            raise ValueError("no such length")
        said = []
        for turn in range(self.turns):
            answer = yield Request([1] * (record["length"] + turn), 10)
            said.append(answer.text)
        if record["length"] == 13:
            raise KeyError("thirteen")
        return {"pred": " ".join(said), "prefill_len": record["length"], "final_len": record["length"] + 10}


@dataclass
class Loud:
    """An engine that remembers its batches' lengths.

    broken: an error for a batch, or which of its lengths are not finite. room: tokens that fit.
    """

    broken: Callable[[list[int]], Exception | list[int] | None] = lambda lengths: None
    room: int | None = None
    calls: list[list[int]] = field(default_factory=list)
    tokenizer: Any = None

    def generate(self, requests: Sequence[Request]) -> list[Generation | FloatingPointError]:
        lengths = [len(request.prompt) for request in requests]
        self.calls.append(lengths)
        trouble = self.broken(lengths)
        if isinstance(trouble, Exception):
            raise trouble
        return [
            FloatingPointError(f"row of {n}") if n in (trouble or ()) else Generation(f"said {n}", n, 10)
            for n in lengths
        ]

    def batch_tokens(self) -> int | None:
        return self.room


def lines(task: Echo, engine: Loud, size: BatchSize) -> dict[str, Line]:
    cfg = config()
    records = select_records(task, cfg, "one")
    found = list(Batches(task, engine, size).predict(cfg.options, "one", records))  # type: ignore[arg-type]
    assert len(found) == len(records)
    return {line["id"]: line for line in found}


def test_similar_lengths_share_a_batch_the_longest_first() -> None:
    engine = Loud()
    found = lines(Echo(), engine, 4)
    assert engine.calls == [[90, 88, 60, 41], [40, 31, 30, 12], [7, 5, 3]]
    assert {int(key): line["pred"] for key, line in found.items()} == {n: f"said {x}" for n, x in enumerate(LENGTHS)}


def test_one_at_a_time_is_in_the_data_sets_order() -> None:
    engine = Loud()
    assert list(lines(Echo(), engine, 1)) == [str(n) for n in range(len(LENGTHS))]
    assert engine.calls == [[n] for n in LENGTHS]


def test_prompts_of_a_pool_only_are_made_ahead() -> None:
    """A long data set's prompts would fill the memory."""
    made: list[str] = []

    class Watched(Echo):
        def dialogue(self, options: NeedleOptions, dataset: str, record: Record, tokenizer: Any) -> Dialogue:
            made.append(record["id"])
            return (yield from super().dialogue(options, dataset, record, tokenizer))

    task, cfg = Watched(lengths=[5] * 400), config()
    stream = Batches(task, Loud(), 4).predict(cfg.options, "one", select_records(task, cfg, "one"))  # type: ignore[arg-type]
    next(stream)
    assert len(made) == 32
    task, made[:] = Watched(lengths=[5] * 400), []
    stream = Batches(task, Loud(), 150).predict(cfg.options, "one", select_records(task, cfg, "one"))  # type: ignore[arg-type]
    next(stream)
    assert len(made) == 150


def test_records_that_end_otherwise_share_no_batch() -> None:
    class Mixed(Echo):
        def dialogue(self, options: NeedleOptions, dataset: str, record: Record, tokenizer: Any) -> Dialogue:
            said = yield Request([1] * record["length"], 10 + record["length"] % 2)
            return {"pred": said.text}

    engine = Loud()
    lines(Mixed(lengths=[5, 6, 7, 8, 9]), engine, 4)
    assert engine.calls == [[8, 6], [9, 7, 5]]


def test_several_turns_are_rounds() -> None:
    engine = Loud()
    found = lines(Echo(lengths=[5, 20, 9], turns=3), engine, 2)
    assert engine.calls == [[20, 9], [5], [21, 10], [6], [22, 11], [7]]
    assert found["1"]["pred"] == "said 20 said 21 said 22"


def test_a_batch_that_does_not_fit_is_halved_and_no_later_one_is_larger(caplog: pytest.LogCaptureFixture) -> None:
    """The memory holds 200 tokens, padding and ten new ones each included."""
    engine = Loud(lambda n: torch.OutOfMemoryError("CUDA out of memory") if len(n) * (n[0] + 10) > 200 else None)
    found = lines(Echo(), engine, 8)
    assert not any(store.is_failed(line) for line in found.values())
    assert engine.calls == [
        [90, 88, 60, 41, 40, 31, 30, 12], [90, 88, 60, 41], [90, 88], [60, 41], [40, 31, 30, 12], [7, 5, 3],
    ]  # fmt: skip
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == [
        "out of memory with 8 records of up to 100 tokens; going on with 4",
        "out of memory with 4 records of up to 100 tokens; going on with 2",
    ]


def test_a_record_that_does_not_fit_alone_fails_alone() -> None:
    engine = Loud(lambda n: torch.OutOfMemoryError("CUDA out of memory") if n[0] > 70 else None)
    found = lines(Echo(), engine, 3)
    assert [LENGTHS[int(key)] for key, line in found.items() if store.is_failed(line)] == [90, 88]
    assert found["1"]["error"] == "OutOfMemoryError: CUDA out of memory"
    assert engine.calls[:4] == [[90, 88, 60], [90], [88], [60]]


@pytest.mark.parametrize("size", [1, 4])
def test_memory_that_cannot_be_given_back_loses_no_record(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", broken)
    engine = Loud(lambda n: torch.OutOfMemoryError("full") if len(n) > 2 or n[0] > 80 else None)
    found = lines(Echo(), engine, size)
    assert {line["error"] for line in found.values() if store.is_failed(line)} == {"OutOfMemoryError: full"}
    assert sum(store.is_failed(line) for line in found.values()) == 2


def test_before_a_smaller_batch_the_larger_ones_memory_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error's frames hold what did not fit; memory is given back after they are gone."""
    held: list[weakref.ref[Any]] = []
    alive: list[bool] = []

    class Big:
        pass

    def broken(lengths: list[int]) -> None:
        if len(lengths) > 1:
            big = Big()
            held.append(weakref.ref(big))
            raise torch.OutOfMemoryError("full")

    gc.disable()
    try:
        monkeypatch.setattr("pipeline.batches.free_memory", lambda: alive.extend(ref() is not None for ref in held))
        lines(Echo(), Loud(broken), 4)
    finally:
        gc.enable()
    assert alive
    assert not any(alive)


def test_rows_that_are_not_finite_fail_after_they_were_tried_alone() -> None:
    engine = Loud(lambda n: [41, 90] if len(n) > 1 else [41])
    found = lines(Echo(), engine, 4)
    assert {LENGTHS[int(key)]: line["error"] for key, line in found.items() if store.is_failed(line)} == {
        41: "FloatingPointError: row of 41"
    }
    assert engine.calls == [[90, 88, 60, 41], [41], [90], [40, 31, 30, 12], [7, 5, 3]]
    assert found["1"]["pred"] == "said 90"


def test_what_fails_in_a_batch_is_tried_alone() -> None:
    engine = Loud(lambda n: ValueError("a bad token") if 60 in n else None)
    found = lines(Echo(), engine, 4)
    assert [key for key, line in found.items() if store.is_failed(line)] == ["5"]
    assert found["5"] == {"id": "5", "error": "ValueError: a bad token"}
    assert engine.calls == [[90, 88, 60, 41], [90], [88], [60], [41], [40, 31, 30, 12], [7, 5, 3]]


def test_a_prompt_that_cannot_be_made_and_an_answer_that_cannot_be_read_fail_alone() -> None:
    found = lines(Echo(lengths=[5, -1, 13, 8]), Loud(), 4)
    assert {key: line.get("error") for key, line in found.items()} == {
        "0": None, "1": "ValueError: no such length", "2": "KeyError: 'thirteen'", "3": None,
    }  # fmt: skip


def test_a_prediction_that_no_file_can_hold_fails_alone() -> None:
    class Odd(Echo):
        def dialogue(self, options: NeedleOptions, dataset: str, record: Record, tokenizer: Any) -> Dialogue:
            said = yield Request([1] * record["length"], 10)
            return {"pred": said.text if record["length"] != 7 else float("nan")}

    found = lines(Odd(), Loud(), 4)
    assert [key for key, line in found.items() if store.is_failed(line)] == ["4"]


def test_a_users_mistake_ends_the_run() -> None:
    class Mistaken(Echo):
        def dialogue(self, options: NeedleOptions, dataset: str, record: Record, tokenizer: Any) -> Dialogue:
            raise UserError("no such folder")
            yield

    with pytest.raises(UserError, match="no such folder"):
        lines(Mistaken(), Loud(), 4)
    with pytest.raises(UserError, match="no room"):
        lines(Echo(), Loud(lambda n: UserError("no room")), 4)


def test_memory_decides_where_the_configuration_leaves_it_open() -> None:
    engine = Loud(room=200)
    lines(Echo(), engine, "auto")
    assert engine.calls == [[90, 88], [60, 41], [40, 31, 30, 12], [7, 5, 3]]
    engine = Loud(room=10**9)
    lines(Echo(lengths=[4] * 50), engine, "auto")
    assert [len(call) for call in engine.calls] == [AUTO_RECORDS, 50 - AUTO_RECORDS]
    engine = Loud(room=None)
    lines(Echo(), engine, "auto")
    assert engine.calls == [[n] for n in LENGTHS]


def run(task: Task, folder: Path, engine: Any, size: BatchSize, cfg: ExperimentConfig | None = None) -> Outcome:
    cfg = cfg or config()
    (dataset,) = task.datasets()
    records = {dataset: select_records(task, cfg, dataset)}
    return run_records(task, cfg.options, lambda: engine, folder, records, FakeWorkers(), size)[dataset]


@pytest.mark.parametrize("stopped", range(1, 12, 3))
def test_a_run_that_is_stopped_inside_a_batch_goes_on_to_the_same_file(tmp_path: Path, stopped: int) -> None:
    """Stopped after so many lines; the file is that of single records, byte for byte."""

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    run(Echo(), whole, Loud(), 1)
    written: list[Line] = []
    real = store.Appender.write

    def write(self: store.Appender, line: Line) -> None:
        if len(written) == stopped:
            raise KeyboardInterrupt
        written.append(line)
        real(self, line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.Appender, "write", write)
        if stopped < len(LENGTHS):
            with pytest.raises(KeyboardInterrupt):
                run(Echo(), parts, Loud(), 4)
    engine = Loud()
    assert run(Echo(), parts, engine, 4) == Outcome(len(LENGTHS), 0, 0)
    assert sum(map(len, engine.calls)) == len(LENGTHS) - stopped
    assert (parts / "one.jsonl").read_bytes() == (whole / "one.jsonl").read_bytes()


def test_the_bar_counts_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr("tqdm.tqdm.update", lambda bar, n=1: steps.append(n))
    run(Echo(), tmp_path, Loud(), 4)
    assert steps == [1] * len(LENGTHS)


@pytest.mark.parametrize(("method", "params"), [("dpi", CHUNKS), ("repro_dynamic_ntk", {"factor": 4.0})])
def test_a_file_does_not_depend_on_the_size_of_batches(tmp_path: Path, method: str, params: dict[str, Any]) -> None:
    """A benchmark and a model, prompts within the window of 64 tokens and beyond."""
    cfg = config(lengths=[0.06, 0.2, 0.09], depths=2, times=2, max_new_tokens=6, max_pe=256)
    files = []
    for size in (1, 5):
        engine = ModelEngine(install(tiny_model(), build_method(method, params), 64), word_tokenizer())
        folder = tmp_path / str(size)
        folder.mkdir()
        run(get_task("needle"), folder, engine, size, cfg)
        files.append((folder / "needle.jsonl").read_bytes())
    assert files[0] == files[1]
    assert files[0].count(b"\n") == 12
    assert b"error" not in files[0]


class Settled(Loud):
    """With settings of one's choice."""

    def __init__(self, **set_aside: object) -> None:
        super().__init__()
        self.set_aside = set_aside

    def generation_settings(self) -> dict[str, Any]:
        return {"num_beams": 1, "set_aside": self.set_aside}


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs an experiment and gives its run record."""
    monkeypatch.setattr("pipeline.experiment.get_task", lambda name: Echo())

    def make(engine: Any, **keys: Any) -> dict[str, Any]:
        run_experiment(config(**keys), tmp_path, FakeWorkers(), lambda cfg: engine, window=64)
        return dict(json.loads((tmp_path / "needle/pred/some-4k-to-8k/run.json").read_text()))

    return make


def test_the_run_record_holds_how_texts_were_decoded(experiment: Callable[..., dict[str, Any]]) -> None:
    settings = {"num_beams": 1, "set_aside": {"repetition_penalty": 1.2}}
    assert experiment(Settled(repetition_penalty=1.2), limit=3)["generation"] == settings
    assert experiment(Settled(), limit=3)["generation"] == settings, "nothing was to do, no model was loaded"
    assert experiment(Settled(repetition_penalty=1.2))["generation"] == settings


def test_what_was_decoded_otherwise_is_not_gone_on_with(
    experiment: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    experiment(Settled(), limit=3)
    with pytest.raises(UserError, match=r"generation\.set_aside\.repetition_penalty was None, is 1\.2.*--overwrite"):
        experiment(Settled(repetition_penalty=1.2), limit=5)
    path = tmp_path / "needle/pred/some-4k-to-8k/run.json"
    run = store.read_json(path)
    del run["generation"]  # as version 0.1, which left the model's own settings in force
    store.write_json(path, run)
    with pytest.raises(UserError, match="repetition_penalty"):
        experiment(Settled(repetition_penalty=1.2), limit=5)
    assert experiment(Settled(), limit=5)["generation"] == {"num_beams": 1, "set_aside": {}}


def test_the_size_of_batches_may_change_between_runs(experiment: Callable[..., dict[str, Any]]) -> None:
    experiment(Settled(), limit=3)
    engine = Settled()
    assert experiment(engine, batch_size=4)["config"]["batch_size"] == 4
    assert [len(call) for call in engine.calls] == [4, 4]


def test_pieces_of_one_model_are_not_batched_by_each_ones_memory(caplog: pytest.LogCaptureFixture) -> None:
    assert batch_size_of(config(batch_size="auto")) == "auto"
    assert batch_size_of(config(batch_size=3, tp_plan="auto")) == 3
    assert not caplog.records
    assert batch_size_of(config(batch_size="auto", tp_plan="auto")) == 1
    assert "give a number" in caplog.text
