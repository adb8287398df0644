"""One of the workers of `pipeline.dispatch`: holds a model and predicts the records that it is given.

It lives in a process of its own, maybe on another machine, and answers one question at a time. It reads models, and
never the results folder.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from pipeline.automatic import settle
from pipeline.batches import Batches, predict
from pipeline.checks import check_start
from pipeline.config import ExperimentConfig
from pipeline.distributed import Workers, check_same
from pipeline.experiment import pinned
from pipeline.model_files import weights_digests
from pipeline.model_loader import EngineLoader
from pipeline.runner import digest
from tasks import get_task
from tasks.base import GenerationTask, Line, Record
from tasks.errors import UserError

Question = Literal["hello", "check", "prepare", "begin", "go_on"]
"""The names of `Worker`'s methods that `Worker.answer` takes."""


@dataclass(frozen=True)
class ModelCopy:
    """A machine's copy of a model. files: with their hashes, see `weights_digests`. host: the machine's name."""

    files: dict[str, str] | None
    host: str


@dataclass(frozen=True)
class Checked:
    """An experiment that nothing speaks against but the weights.

    cfg: its configuration with numbers for what was "auto", of which `automatic` is the run record's note. window: W in
    tokens. revision: the commit of a model from the hub. to_load: `cfg` with that commit, which all workers load. copy:
    of the model, with which theirs are compared.
    """

    cfg: ExperimentConfig
    automatic: dict[str, Any] | None
    window: int
    revision: str | None
    copy: ModelCopy

    @property
    def to_load(self) -> ExperimentConfig:
        """See the class."""
        return pinned(self.cfg, self.revision)


@dataclass(frozen=True)
class Ready:
    """A worker that has loaded the model of an experiment.

    device: what people call its hardware. generation: how it decodes, None where nothing is generated. rows: the most
    records of a batch. shares: whether prompts share what they begin with.
    """

    device: str
    generation: dict[str, Any] | None
    rows: int
    shares: bool


@dataclass(frozen=True)
class Said:
    """A record's line, and the seconds since the worker's line before it, or since it was given the records."""

    line: Line
    seconds: float


@dataclass(frozen=True)
class Reply:
    """A worker's answer. mistake: a `UserError`'s text in place of a value, with the traceback of its cause, if any.

    host: the name of the worker's machine. log: what was logged on the way, to be logged where the user sees it.
    """

    host: str
    value: Any = None
    mistake: str | None = None
    cause: str | None = None
    log: tuple[logging.LogRecord, ...] = ()


class Worker:
    """See the module. A user's mistake comes back in the reply; any other error is a bug, and is raised."""

    def __init__(self, folder: Path, log: Log | None = None) -> None:
        """folder: the working directory of whoever asks, in which relative paths are meant. log: what `Reply` gives."""
        self._folder = folder
        self._log = log
        self._load = EngineLoader(Workers())
        self._copies: dict[str, ModelCopy] = {}
        self._batches: tuple[ExperimentConfig, Batches | None] | None = None
        self._lines: Iterator[Line] = iter(())
        self._before = 0.0

    def answer(self, question: Question, arguments: Sequence[Any]) -> Reply:
        """Answer a question: call the method of that name."""
        value = mistake = cause = None
        try:
            value = getattr(self, question)(*arguments)
        except UserError as error:
            mistake = str(error)
            if error.__cause__ is not None:
                cause = "".join(traceback.format_exception(error.__cause__))
        log = self._log.take() if self._log is not None else ()
        return Reply(socket.gethostname(), value, mistake, cause, log)

    def hello(self) -> None:
        """Begin. Raises `UserError` where the working directory is not there."""
        try:
            os.chdir(self._folder)
        except OSError as error:
            raise UserError(f"the working directory {str(self._folder)!r}: {error.strerror}") from None

    def check(self, cfg: ExperimentConfig) -> Checked:
        """Settle what is "auto" by measuring, and check an experiment on this machine, without weights otherwise."""
        nowhere = Path(os.devnull)  # what a run record says was looked up before
        cfg, automatic = settle(cfg, nowhere, Workers(), overwrite=True, release=self._release)
        start = check_start(cfg)
        return Checked(cfg, automatic, start.window, start.revision, self._copy_of(cfg.model))

    def prepare(self, cfg: ExperimentConfig, copy: ModelCopy) -> Ready:
        """Load the model of an experiment, unless it is the one that is here.

        copy: of the worker that checked the experiment. Raises `UserError` if this machine's is another one.
        """
        from models.DPI.loading import device_name

        mine = self._copy_of(cfg.model)
        check_same("files of the model", (copy.files, copy.host), (mine.files, mine.host), "copy the model anew")
        if self._batches is not None and self._batches[0] != cfg:
            self._forget()
        engine = self._load(cfg)
        batches = self._batches_of(cfg)
        settings = engine.generation_settings()
        generates = isinstance(get_task(cfg.task), GenerationTask)
        return Ready(
            device_name(cfg.device),
            settings if generates else None,
            batches.rows if batches is not None else 1,
            bool(settings["shares_prefixes"]),
        )

    def begin(self, cfg: ExperimentConfig, dataset: str, records: Sequence[Record], hashed: str) -> Said | None:
        """Begin to predict records of an experiment that is prepared; the first line that is ready.

        hashed: their `digest` where they were read. Raises `UserError` if the files that they name are others here.
        """
        if digest({dataset: records}) != hashed:
            folder = str(cfg.options.data_dir)
            raise UserError(f"data_dir = {folder!r} has other files than where the run began; share the folder")
        engine = self._load(cfg)
        self._before = time.monotonic()
        self._lines = predict(get_task(cfg.task), engine, cfg.options, dataset, records, self._batches_of(cfg))
        return self.go_on()

    def go_on(self) -> Said | None:
        """The next line of these records; None if there is none."""
        line = next(self._lines, None)
        now = time.monotonic()
        seconds, self._before = now - self._before, now
        return None if line is None else Said(line, seconds)

    def _copy_of(self, model: str) -> ModelCopy:
        """This machine's copy of a model, whose files are read once."""
        if model not in self._copies:
            self._copies[model] = ModelCopy(weights_digests(model), socket.gethostname())
        return self._copies[model]

    def _forget(self) -> None:
        """What knows of a model goes with it: two might not fit."""
        self._batches, self._lines = None, iter(())

    def _release(self) -> None:
        self._forget()
        self._load.release()

    def _batches_of(self, cfg: ExperimentConfig) -> Batches | None:
        """An experiment's batches: what did not fit into memory once is not tried again."""
        if self._batches is None or self._batches[0] != cfg:
            task = get_task(cfg.task)
            engine = self._load(cfg)
            batches = Batches(task, engine, cfg.batch_size) if isinstance(task, GenerationTask) else None
            self._batches = (cfg, batches)
        return self._batches[1]


class Log(logging.Handler):
    """Keeps what is logged until it is taken, each record with its text in place."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        super().__init__()
        self._kept: list[logging.LogRecord] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.msg += "\n" + "".join(traceback.format_exception(*record.exc_info))
            record.exc_info = None
        self._kept.append(record)

    def take(self) -> tuple[logging.LogRecord, ...]:
        """What came since the last call."""
        kept, self._kept = tuple(self._kept), []
        return kept
