"""Runs one experiment: which records are still to do, who does them, and how their lines reach the disk.

Records are spread over processes by their place in the data set (record i belongs to process i mod world). A record
that fails is written down with its error and the run goes on; a rerun tries only the failed and the missing ones.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.mistakes import did_you_mean
from pipeline import store
from pipeline.batches import Batches, BatchSize, predict
from pipeline.config import ExperimentConfig
from pipeline.files import encoded
from pipeline.progress import Observer, Progress
from tasks.base import Engine, GenerationTask, Line, Record, Task
from tasks.errors import UserError
from tasks.options import Options
from tasks.reading import read_regular

if TYPE_CHECKING:
    from pipeline.distributed import Workers


@dataclass(frozen=True)
class Outcome:
    """How many records a data set has, and how many of them have failed or are missing."""

    records: int
    failed: int
    missing: int


def select_datasets(task: Task, cfg: ExperimentConfig) -> list[str]:
    """The data sets that a configuration asks for: `cfg.tasks`, or the task's own."""
    known = task.known_datasets()
    for name in cfg.tasks:
        if name not in known:
            near = did_you_mean(name, known)
            raise UserError(f"unknown data set {name!r} of {task.name}{near} (data sets: {', '.join(known)})")
    return list(dict.fromkeys(cfg.tasks)) or task.datasets()


def select_records(task: Task, cfg: ExperimentConfig, dataset: str) -> list[Record]:
    """The records of a data set, as many as `limit` and `test` allow."""
    limit = 1 if cfg.test else cfg.limit
    records = list(itertools.islice(task.records(cfg.options, dataset), limit))
    if not records:
        raise UserError(f"data set {dataset!r} of {task.name} has no records")
    repeated = len(records) - len({record["id"] for record in records})
    if repeated:
        raise ValueError(f"{task.name}, data set {dataset!r}: {repeated} records share an id with another")
    return records


def digest(records: Mapping[str, Sequence[Record]]) -> str:
    """A short hash of records by data set, the same on machines that have the same, with the files that they name."""
    found = hashlib.sha256()
    for dataset, wanted in records.items():
        for record in wanted:
            found.update(encoded(json.dumps([dataset, record], default=_content)))
    return found.hexdigest()[:12]


def _content(value: object) -> str:
    return hashlib.sha256(read_regular(value)).hexdigest() if isinstance(value, Path) else str(value)


def run_records(
    task: Task,
    options: Options,
    get_engine: Callable[[], Engine],
    folder: Path,
    records: Mapping[str, list[Record]],
    workers: Workers,
    batch_size: BatchSize = 1,
    *,
    title: str = "",
    observers: Sequence[Observer] = (),
) -> dict[str, Outcome]:
    """Predict every record that has no prediction yet, and bring the prediction files into order.

    `get_engine` loads the model; it is called at most once, and only where this process has work. batch_size: of
    records that are generated together, see `pipeline.batches`; benchmarks of another kind go one by one. title: what
    stands before the bar. observers: are told of each record that this process has predicted.
    """
    todo = begin(task, folder, records, workers)
    total = sum(len(wanted) for wanted in todo.values())
    engine = get_engine() if total else None
    batches = Batches(task, engine, batch_size) if engine is not None and isinstance(task, GenerationTask) else None
    before = time.monotonic()
    with Progress(total, title or task.name, show=workers.is_main) as progress:
        told: list[Observer] = [progress, *observers]
        for dataset, wanted in todo.items():
            if engine is None or not wanted:
                continue
            path = (
                store.part_file(folder, dataset, workers.rank)
                if workers.count > 1
                else store.prediction_file(folder, dataset)
            )
            with store.Appender(path if workers.writes else None) as appender:
                for line in predict(task, engine, options, dataset, wanted, batches):
                    appender.write(line)
                    now = time.monotonic()
                    for observe in told:
                        observe(dataset, line, now - before)
                    before = now
    return finish(folder, records, workers)


def begin(task: Task, folder: Path, records: Mapping[str, list[Record]], workers: Workers) -> dict[str, list[Record]]:
    """Bring the prediction files into order. Returns what this process has to predict, by data set."""
    _merge(folder, records, workers)
    todo = {
        dataset: by_document(task, dataset, _pending(folder, dataset, wanted, workers))
        for dataset, wanted in records.items()
    }
    workers.barrier()
    return todo


def count_left(folder: Path, records: Mapping[str, list[Record]], workers: Workers) -> int:
    """How many records this process has to predict; nothing is written. Raises `UserError` for a broken file."""
    return sum(
        len(_undone(store.read_unmerged(folder, dataset).values(), wanted, workers))
        for dataset, wanted in records.items()
    )


def finish(folder: Path, records: Mapping[str, list[Record]], workers: Workers) -> dict[str, Outcome]:
    """Bring the prediction files into order, and say how far they are."""
    parts = [store.part_file(folder, dataset, workers.rank) for dataset in records]
    written = workers.gather({path.name: path.stat().st_size for path in parts if path.exists()})
    sizes = {name: size for each in written for name, size in each.items()}
    if all(workers.gather(not workers.is_main or store.wait_for(folder, sizes))):  # else parts would be cut
        _merge(folder, records, workers)
    return {dataset: count(folder, dataset, wanted) for dataset, wanted in records.items()}


def _merge(folder: Path, records: Mapping[str, list[Record]], workers: Workers) -> None:
    workers.barrier()
    if workers.is_main:
        for dataset, wanted in records.items():
            store.merge(folder, dataset, [record["id"] for record in wanted])
    workers.barrier()


def _pending(folder: Path, dataset: str, wanted: list[Record], workers: Workers) -> list[Record]:
    return _undone(store.read_lines(store.prediction_file(folder, dataset)), wanted, workers)


def _undone(lines: Iterable[Line], wanted: list[Record], workers: Workers) -> list[Record]:
    done = {line["id"] for line in lines if not store.is_failed(line)}
    mine = itertools.islice(wanted, workers.index, None, workers.count)
    return [record for record in mine if record["id"] not in done]


def by_document(task: Task, dataset: str, records: list[Record]) -> list[Record]:
    """Records in their order, but those of one document right after its first: LongBench's lie far apart."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        document = task.document(dataset, record)
        key = ("id", record["id"]) if document is None else ("document", document)
        groups.setdefault(key, []).append(record)
    return [record for group in groups.values() for record in group]


def count(folder: Path, dataset: str, wanted: list[Record]) -> Outcome:
    """How far a data set is."""
    lines = {line["id"]: line for line in store.read_lines(store.prediction_file(folder, dataset))}
    found = [lines[record["id"]] for record in wanted if record["id"] in lines]
    failed = sum(store.is_failed(line) for line in found)
    return Outcome(len(wanted), failed, len(wanted) - len(found))
