"""Two experiments record by record: how much a score differs over the records that both have predicted.

Records are hard or easy for both alike, so differences of single records say more than two intervals beside each other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.scoring import config_of, read_predictions, scored
from tasks.base import Line, Task
from tasks.errors import UserError
from tasks.metrics.paired import paired_difference
from tasks.results import RESULT_FILE, Score, mean_of

SAME = ("answers", "answer", "context_length", "depth_percent", "scored_tokens")
"""Fields that a record's line has from the record, and not from the model."""
CLOSE = 0.02
"""How far the mean of records' marks may lie from the score of all: marks have two to four decimals."""

Key = tuple[str, Any]
"""Data set and id of a record."""


@dataclass(frozen=True)
class Difference:
    """An experiment's score less the baseline's, over the records that both have.

    by_column: by the score's name; `count` is the number of records. average: of the columns, where the benchmark has
    one. left_out: scores that are no mean over records, or have fewer than two in common.
    """

    experiment: str
    by_column: Mapping[str, Score]
    average: Score | None
    left_out: tuple[str, ...]


def difference(folder: Path, baseline: Path, task: Task) -> Difference:
    """The difference between two experiments of a task.

    Raises `UserError` where one has no predictions, none in common with the other, or a record is not the same, and for
    a line that cannot be scored.
    """
    lines = {key: line for key, line in _lines(folder).items() if not store.is_failed(line)}
    others = {key: line for key, line in _lines(baseline).items() if not store.is_failed(line)}
    common = [key for key in lines if key in others]
    if not common:
        raise UserError(f"{folder.name!r} and {baseline.name!r} have no predicted record in common")
    for key in common:
        _check_same(folder, baseline, key, lines[key], others[key])
    options, other_options = _options(folder, task), _options(baseline, task)
    mine = {key: _alone(task, options, key, lines[key], folder) for key in common}
    theirs = {key: _alone(task, other_options, key, others[key], baseline) for key in common}
    by_column: dict[str, Score] = {}
    left_out = []
    for column in dict.fromkeys(name for marks in mine.values() for name in marks):
        keys = [key for key in common if column in mine[key] and column in theirs[key]]
        whole = _together(task, options, column, {key: lines[key] for key in keys}, folder)
        other_whole = _together(task, other_options, column, {key: others[key] for key in keys}, baseline)
        pairs = [(mine[key][column], theirs[key][column]) for key in keys]
        found = _paired(pairs, whole, other_whole) if len(pairs) > 1 else None
        if found is None:
            left_out.append(column)
        else:
            by_column[column] = found
    average = None
    if len(by_column) > 1 and task.average(by_column) is not None:
        average = mean_of(list(by_column.values()))
    return Difference(folder.name, by_column, average, tuple(left_out))


def _lines(folder: Path) -> dict[Key, Line]:
    found = read_predictions(folder)
    if not found:
        raise UserError(f"{str(folder)!r} has no predictions; --against needs those of both experiments")
    if missing := [name for name, lines in found.items() if any("id" not in line for line in lines)]:
        raise UserError(f"{str(folder / missing[0])!r}.jsonl has lines without 'id', so its records cannot be paired")
    return {(name, line["id"]): line for name, lines in found.items() for line in lines}


def _options(folder: Path, task: Task) -> Any:
    cfg = config_of(store.read_run(folder), folder, task)
    return None if cfg is None else cfg.options


def _check_same(folder: Path, baseline: Path, key: Key, line: Line, other: Line) -> None:
    for field in SAME:
        if field in line and field in other and line[field] != other[field]:
            raise UserError(
                f"{folder.name!r} and {baseline.name!r} cannot be paired: record {key[1]!r} of {key[0]!r} has another "
                f"{field} ({line[field]!r:.60}, {other[field]!r:.60}); run both with the same data and seed"
            )


def _alone(task: Task, options: Any, key: Key, line: Line, folder: Path) -> dict[str, float]:
    """The columns that a record has a mark in, each as if it were the only record."""
    scores = task.columns(RESULT_FILE, scored(task, options, {key[0]: [line]}, folder))
    return {name: score.score for name, score in scores.items() if score.score is not None}


def _together(task: Task, options: Any, column: str, lines: Mapping[Key, Line], folder: Path) -> float | None:
    by_dataset: dict[str, list[Line]] = {}
    for (dataset, _), line in lines.items():
        by_dataset.setdefault(dataset, []).append(line)
    found = task.columns(RESULT_FILE, scored(task, options, by_dataset, folder)).get(column)
    return None if found is None else found.score


def _paired(pairs: Sequence[tuple[float, float]], whole: float | None, other: float | None) -> Score | None:
    """The difference of two scores that are means of marks, or geometric means; None where they are neither."""
    if whole is None or other is None:
        return None
    mine, theirs = zip(*pairs, strict=True)
    for geometric in (False, True):
        if geometric and min(map(min, pairs)) <= 0:
            continue
        mean = statistics.geometric_mean if geometric else statistics.fmean
        means = zip((mean(mine), mean(theirs)), (whole, other), strict=True)
        if all(math.isclose(m, w, abs_tol=CLOSE, rel_tol=1e-6) for m, w in means):
            return paired_difference([mine], [theirs], geometric=geometric)
    return None
