"""Records of one experiment that wait for a worker, and what becomes of those whose worker dies."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.batches import pool_size
from tasks.base import Record, Task

MOST_TRIES = 3
"""Workers that may die over one record; then it has failed."""


@dataclass(frozen=True)
class Unit:
    """Records of one data set for one worker. rows: of its batches at most."""

    dataset: str
    records: Sequence[Record]
    rows: int


class Queue:
    """Hands records out in their order, and once more, alone and behind the others, where a worker died over them."""

    def __init__(self, task: Task, todo: Mapping[str, Sequence[Record]]) -> None:
        """todo: records by data set, those of one document behind each other."""
        self._task = task
        self._waiting = {dataset: deque(records) for dataset, records in todo.items()}
        self._suspects: deque[Unit] = deque()
        self._tries: Counter[tuple[str, str]] = Counter()

    def __len__(self) -> int:
        """Records that wait."""
        return sum(map(len, self._waiting.values())) + len(self._suspects)

    def take(self, rows: int, workers: int, *, shares: bool) -> Unit | None:
        """What the next worker is to do; None if nothing waits.

        rows: of its batches. workers: among how many the rest is to be spread. shares: whether it reads once what the
        prompts of one document begin with.
        """
        for dataset, waiting in self._waiting.items():
            if waiting:
                size = self._together(dataset, waiting, rows, workers, shares)
                return Unit(dataset, [waiting.popleft() for _ in range(size)], rows)
        return self._suspects.popleft() if self._suspects else None

    def put_back(self, unit: Unit, rest: Sequence[Record]) -> list[Record]:
        """Take back the records of a unit that have no line because its worker died; those that are given up return.

        Of records that go one by one, the first is the one that the worker died over; of a batch, any may be.
        """
        suspects, others = (rest[:1], rest[1:]) if unit.rows == 1 else (rest, [])
        self._waiting[unit.dataset].extendleft(reversed(others))
        given_up = []
        for record in suspects:
            self._tries[unit.dataset, record["id"]] += 1
            if self._tries[unit.dataset, record["id"]] < MOST_TRIES:
                self._suspects.append(Unit(unit.dataset, [record], 1))
            else:
                given_up.append(record)
        return given_up

    def _together(self, dataset: str, waiting: Sequence[Record], rows: int, workers: int, shares: bool) -> int:
        """How many of the records that wait one worker takes."""
        if rows > 1:  # many at first, which batch better; few at the end, so that all end together
            wanted = -(-len(waiting) // (2 * workers))
            return min(len(waiting), pool_size(rows), max(rows, -(-wanted // rows) * rows))
        if not shares or (document := self._task.document(dataset, waiting[0])) is None:
            return 1
        same = (self._task.document(dataset, record) == document for record in waiting)
        return next((size for size, equal in enumerate(same) if not equal), len(waiting))
