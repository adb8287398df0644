"""Who does what where several workers share the records of one or more experiments.

This process reads data, writes results and shows progress, as a run of one process does; workers hold models and
predict. A free worker goes on with the experiment whose model it has, else begins the next one, else helps where most
is left. Records of a worker that dies go to others.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pipeline import signals, store
from pipeline.automatic import asked_of, begun_with
from pipeline.config import ExperimentConfig
from pipeline.distributed import Workers
from pipeline.experiment import check_decoding, check_model_revision, read_experiment, with_model_revision
from pipeline.model_loader import engine_key
from pipeline.progress import Progress, check_tracker
from pipeline.runner import Outcome, count_left, digest
from pipeline.shared_run import SharedRun
from pipeline.waiting import Unit
from pipeline.worker import Checked, Question, Ready, Reply, Said
from tasks import get_task
from tasks.base import Record
from tasks.errors import UserError, said_of

logger = logging.getLogger(__name__)

MOST_STARTS = 3
"""Deaths of a worker in a row, before it has a model, after which it is given up."""
MOST_IN_VAIN = 12
"""Deaths of any workers without a prediction between them, after which the run ends; 3 a worker, if that is more."""


@dataclass(frozen=True)
class Died:
    """In place of a reply: the worker's process has ended. reason: one line."""

    reason: str


class Pool(Protocol):
    """Workers, each in a process of its own, by number."""

    size: int

    def ask(self, worker: int, question: Question, *arguments: Any) -> None:
        """Put a question to a worker that has none. The reply comes out of `wait`."""
        ...

    def wait(self) -> Iterable[tuple[int, Reply | Died]]:
        """Replies that are there, by worker; waits a moment for the first one, which may not come."""
        ...

    def renew(self, worker: int) -> None:
        """Put a new process in the place of one that died."""
        ...


@dataclass(eq=False)
class Job:
    """One experiment. source: how errors name it. `records` are known once it is checked, `run` once it has begun.

    left: records to predict, as the folder was when it was checked.
    """

    number: int
    cfg: ExperimentConfig
    source: str
    checked: Checked | None = None
    records: dict[str, list[Record]] = field(default_factory=dict)
    left: int = 0
    run: SharedRun | None = None

    @property
    def folder(self) -> tuple[str, str]:
        """What two experiments cannot both write to at a time."""
        return get_task(self.cfg.task).folder, self.cfg.exp_name

    @property
    def key(self) -> str | None:
        """Which model it needs, as far as that is known."""
        return engine_key(self.checked.to_load) if self.checked is not None else None


@dataclass(eq=False)
class Hand:
    """A worker as it looks from here. asked: the question that it has not answered. job: what it last worked on.

    host: its machine, "" until it has answered.
    """

    number: int
    asked: Question | None = None
    gone: bool = False
    host: str = ""
    job: Job | None = None
    key: str | None = None
    ready: Ready | None = None
    unit: Unit | None = None
    rest: list[Record] = field(default_factory=list)
    deaths: int = 0


class Dispatcher:
    """See the module."""

    def __init__(self, pool: Pool, results: Path, *, overwrite: bool = False) -> None:
        """results: their folder. overwrite: begin anew."""
        self._pool = pool
        self._results = results
        self._overwrite = overwrite
        self._hands = [Hand(number) for number in range(pool.size)]
        self._coming: deque[Job] = deque()
        self._active: list[Job] = []
        self._count = 0
        self._progress: Progress | None = None
        self._in_vain = 0
        self._mistake: UserError | None = None
        self._said: set[tuple[str, str]] = set()

    def run(self, experiments: Sequence[tuple[ExperimentConfig, str]]) -> Iterator[tuple[Job, dict[str, Outcome]]]:
        """Predict what is still to do of experiments, each with the name of its source. Yields each when it is ready.

        Raises `UserError` for a mistake in one of them; those that have begun are finished before, others not begun.
        """
        self._coming.extend(Job(number, cfg, source) for number, (cfg, source) in enumerate(experiments, start=1))
        self._count = len(self._coming)
        try:
            for hand in self._hands:
                self._ask(hand, "hello")
            while self._active or (self._coming and self._mistake is None):
                self._give_work()
                yield from self._take_finished()
                if self._active or self._coming:
                    for number, reply in self._pool.wait():
                        self._hear(self._hands[number], reply)
                        signals.check()
        finally:
            for job in self._active:
                if job.run is not None:
                    job.run.close()
            if self._progress is not None:
                self._progress.close()
        if self._mistake is not None:
            raise self._mistake

    def _ask(self, hand: Hand, question: Question, *arguments: Any) -> None:
        hand.asked = question
        self._pool.ask(hand.number, question, *arguments)

    def _give_work(self) -> None:
        for hand in self._hands:
            if hand.gone or hand.asked is not None:
                continue
            job = self._choose(hand)
            if job is not None:
                self._put_to(hand, job)

    def _choose(self, hand: Hand) -> Job | None:
        """The experiment that a free worker works on next."""
        open_ones = [job for job in self._active if self._has_work(job)]
        if hand.job in open_ones:
            return hand.job
        for job in open_ones:
            if job.key == hand.key:
                return job
        if (following := self._next()) is not None:
            return following
        return max(open_ones, key=lambda job: self._left(job) / (1 + self._helpers(job)), default=None)

    def _has_work(self, job: Job) -> bool:
        """Whether one more worker can do something: one that is being prepared needs no more than it has records."""
        return job.checked is not None and self._left(job) > (self._helpers(job) if job.run is None else 0)

    def _left(self, job: Job) -> int:
        return len(job.run.queue) if job.run is not None else job.left

    def _helpers(self, job: Job) -> int:
        return sum(hand.job is job and hand.asked is not None for hand in self._hands)

    def _next(self) -> Job | None:
        """The next experiment, if it can begin beside those that are under way."""
        if not self._coming or self._mistake is not None:
            return None
        job = self._coming[0]
        if any(other.folder == job.folder for other in self._active):
            return None  # the same experiment twice, as a sweep may have it
        if self._active and any(each.cfg.tracker is not None for each in (job, *self._active)):
            return None  # trackers know one run a process
        measured = [each for each in self._active if each.checked is None and asked_of(each.cfg)]
        if measured and asked_of(job.cfg):
            return None  # the next one finds in the cache what this one measures
        return job

    def _put_to(self, hand: Hand, job: Job) -> None:
        """Ask a free worker for the next step of an experiment."""
        if job is not hand.job or job.checked is None:
            hand.job, hand.ready = job, None
        if job.checked is None:
            self._coming.popleft()
            self._active.append(job)
            if self._count > 1:
                logger.info("experiment %d of %d: %s (%s)", job.number, self._count, job.cfg.exp_name, job.cfg.task)
            with self._mistakes_of(job):
                check_tracker(job.cfg)
                job.cfg = with_model_revision(job.cfg, self._results, overwrite=self._overwrite)
                job.cfg = job.cfg if self._overwrite else begun_with(job.cfg, self._results)
                self._ask(hand, "check", job.cfg)
        elif hand.ready is None:
            hand.key = job.key
            self._ask(hand, "prepare", job.checked.to_load, job.checked.copy)
        elif job.run is not None:
            workers = len([each for each in self._hands if not each.gone])
            hand.unit = job.run.queue.take(hand.ready.rows, workers, shares=hand.ready.shares)
            if (unit := hand.unit) is not None:
                hand.rest = list(unit.records)
                with self._mistakes_of(job):
                    hashed = digest({unit.dataset: unit.records})
                    self._ask(hand, "begin", job.checked.to_load, unit.dataset, unit.records, hashed)
                if hand.asked is None:  # the experiment has ended in a mistake
                    hand.unit, hand.rest = None, []

    def _hear(self, hand: Hand, reply: Reply | Died) -> None:
        """Go on with what a worker has answered."""
        question, hand.asked = hand.asked, None
        if isinstance(reply, Died):
            self._bury(hand, question, reply.reason)
            return
        self._log(reply)
        hand.host = reply.host
        job = hand.job
        with self._mistakes_of(job):
            if reply.mistake is not None:
                hand.unit, hand.rest = None, []
                with said_of(self._place(hand)):
                    raise UserError(reply.mistake) from (None if reply.cause is None else WorkerError(reply.cause))
            if question == "hello":
                return
            if job is None or job not in self._active:
                hand.unit, hand.rest = None, []  # the experiment was given up meanwhile
            elif question == "check":
                self._read(job, reply.value)
            elif question == "prepare":
                self._prepared(hand, job, reply.value)
            else:
                self._line(hand, job, reply.value)

    def _read(self, job: Job, checked: Checked) -> None:
        """Read an experiment's records. One without work begins, and ends; another waits for its model to be there."""
        folder, cfg, job.records = read_experiment(checked.cfg, self._results, overwrite=self._overwrite)
        job.checked = replace(checked, cfg=cfg)
        if self._overwrite:
            job.left = sum(map(len, job.records.values()))
            return
        check_model_revision(folder, cfg, checked.revision)
        job.left = count_left(folder, job.records, Workers())
        if not job.left:
            self._begin(job)

    def _begin(self, job: Job) -> None:
        assert job.checked is not None
        job.run = SharedRun(job.checked, self._results, job.records, self._pool.size, overwrite=self._overwrite)
        left, place = len(job.run.queue), f"{job.number}/{self._count} " if self._count > 1 else ""
        if self._progress is None:
            self._progress = Progress(0, "", show=True)
        self._progress.extend(left, f"{place}{job.cfg.task}")
        job.run.observers.append(self._progress)

    def _prepared(self, hand: Hand, job: Job, ready: Ready) -> None:
        hand.ready = ready
        hand.deaths = 0
        if job.run is None:
            if not self._overwrite:
                folder = store.experiment_folder(self._results, get_task(job.cfg.task), job.cfg.exp_name)
                check_decoding(folder, ready.generation)
            self._begin(job)
        if job.run is not None:
            job.run.note(ready)

    def _line(self, hand: Hand, job: Job, said: Said | None) -> None:
        """Write a line down and ask for the next one; at the end of its records the worker is free."""
        assert job.run is not None
        assert hand.unit is not None
        if said is None:
            hand.unit, hand.rest = None, []
            return
        self._in_vain = 0
        hand.rest = [record for record in hand.rest if record["id"] != said.line["id"]]
        job.run.write(hand.unit.dataset, said.line, said.seconds)
        self._ask(hand, "go_on")

    def _take_finished(self) -> Iterator[tuple[Job, dict[str, Outcome]]]:
        for job in list(self._active):
            busy = any(hand.job is job and hand.unit is not None for hand in self._hands)
            if job.run is not None and not busy and not job.run.queue:
                outcomes = None
                with self._mistakes_of(job):
                    outcomes = job.run.finish()
                if outcomes is not None:
                    self._active.remove(job)
                    yield job, outcomes

    def _bury(self, hand: Hand, question: Question | None, reason: str) -> None:
        """Give a dead worker's records to others, and put a new one in its place."""
        job, unit = hand.job, hand.unit
        place = f" {place}" if hand.host and (place := self._place(hand)) else ""
        logger.warning("worker %d of %d%s ended: %s", hand.number + 1, len(self._hands), place, reason)
        if job is not None and job in self._active:
            if unit is not None and job.run is not None:
                with self._mistakes_of(job):
                    job.run.put_back(unit, hand.rest, reason)
            elif job.checked is None:
                self._active.remove(job)
                self._coming.appendleft(job)
        hand.job = hand.key = hand.ready = hand.unit = None
        hand.rest, hand.host = [], ""
        hand.deaths += unit is None
        self._in_vain += 1
        hand.gone = hand.deaths >= MOST_STARTS
        if all(each.gone for each in self._hands) or self._in_vain >= max(MOST_IN_VAIN, 3 * len(self._hands)):
            raise UserError(f"the workers end before they predict anything; the last one: {reason}")
        if hand.gone:
            logger.warning("worker %d is given up: it ended %d times", hand.number + 1, hand.deaths)
        else:
            self._pool.renew(hand.number)
            self._ask(hand, "hello")

    def _log(self, reply: Reply) -> None:
        """Log what a worker logged. What all of them say is said once."""
        for record in reply.log:
            said = (record.name, record.getMessage())
            if record.levelno >= logging.ERROR or said not in self._said:
                self._said.add(said)
                if logging.getLogger(record.name).isEnabledFor(record.levelno):
                    logging.getLogger(record.name).handle(record)

    def _place(self, hand: Hand) -> str:
        """How an error names a worker's machine: not at all where all workers are on this one."""
        hosts = {each.host for each in self._hands if each.host} | {socket.gethostname()}
        return f"on {hand.host}" if len(hosts) > 1 else ""

    @contextlib.contextmanager
    def _mistakes_of(self, job: Job | None) -> Iterator[None]:
        """A user's mistake inside the block ends its experiment. Those under way go on, and no other one begins."""
        try:
            with said_of(job.source if job is not None else ""):
                yield
        except UserError as error:
            if job is None:
                raise
            self._mistake = self._mistake or error
            if job in self._active:
                self._active.remove(job)
            if job.run is not None:
                job.run.close()
            if self._active:
                logger.error("%s (experiments that are under way go on, and no other one begins)", error)


class WorkerError(Exception):
    """An error in another process, as its traceback."""
