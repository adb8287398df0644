"""An experiment's scores as the terminal shows them: within 80 columns, with intervals and counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import store
from pipeline.paired import Difference
from pipeline.scoring import Progress
from pipeline.text import plain_table, printable
from tasks.base import Task
from tasks.results import DETAIL_FILE, RESULT_FILE, Score

NONE = "-"
AVERAGE = "average"


def show_scores(folder: Path, task: Task, progress: Progress, console: Console) -> None:
    """Print the scores of an experiment that `score_experiment` has scored, what is missing, and where files lie."""
    results = {
        file: store.read_json(folder / file)
        for file in dict.fromkeys([*task.result_files, DETAIL_FILE])
        if (folder / file).exists()
    }
    scores = task.columns(RESULT_FILE, results)
    say(console, f"{task.label}: {folder.name}")
    console.print(score_table(task, scores, progress))
    for line in _remarks(task, scores, results, progress):
        console.print(printable(line), highlight=False, markup=False)
    say(console, str(folder / RESULT_FILE))
    if others := [file for file in results if file != RESULT_FILE]:
        say(console, f"  beside it {', '.join(others)}")


def say(console: Console, line: str) -> None:
    """Print a line as it is, however long: paths and commands are copied."""
    console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def score_table(task: Task, scores: Mapping[str, Score], progress: Progress) -> Table:
    """A row for each score, with its interval and the records it is of; records and failures where a row is a data set.

    Data sets of which nothing could be scored have a row too.
    """
    by_dataset = all(name in progress.datasets for name in scores)
    first = "tokens" if scores and all(name.isdecimal() for name in scores) else "data set"
    table = plain_table(first, task.measure, "95 % interval", "scored", *(["records", "failed"] if by_dataset else []))
    names = [*scores, *(name for name in progress.datasets if name not in scores and by_dataset)]
    for name in names:
        score = scores.get(name, Score(None, count=0))
        counts = progress.datasets[name].cells() if by_dataset else ()
        table.add_row(escape(printable(name)), *_cells(score, task.digits), *counts)
    average = task.average(scores) if len(scores) > 1 else None
    if average is not None:
        table.add_section()
        table.add_row(AVERAGE, *_cells(average, task.digits)[:2])
    return table


def differences_table(differences: Sequence[Difference], task: Task) -> Table:
    """A row for each score of each experiment, with the interval of its difference to the baseline."""
    table = plain_table("experiment", f"{task.measure} of", "difference", "95 % interval", "records")
    for found in differences:
        rows = dict(found.by_column) | ({AVERAGE: found.average} if found.average is not None else {})
        for place, (name, score) in enumerate(rows.items()):
            cells = _cells(score, task.digits)
            first = escape(printable(found.experiment)) if place == 0 else ""
            table.add_row(first, escape(printable(name)), *cells[:2], cells[2] if name != AVERAGE else "")
    return table


def _cells(score: Score, digits: int) -> tuple[str, str, str]:
    """Score, interval (a standard error where no interval is known) and count."""
    if score.score is None:
        return NONE, NONE, NONE if score.count is None else f"{score.count:,}"
    interval = NONE
    if score.interval is not None:
        low, high = score.interval
        interval = f"{low:.{digits}f} to {high:.{digits}f}"
    elif score.stderr:
        interval = f"± {score.stderr:.{digits}f} (s.e.)"
    return f"{score.score:.{digits}f}", interval, NONE if score.count is None else f"{score.count:,}"


def _remarks(task: Task, scores: Mapping[str, Score], results: Mapping[str, Any], progress: Progress) -> Iterator[str]:
    for file in task.result_files[1:]:
        if file in results:
            found = task.columns(file, results)
            average = task.average(found)
            said = "no records" if average is None else f"average {_cells(average, task.digits)[0]} of {average.count}"
            yield f"{file}: {said}"
    total = f"of {progress.expected:,} records " if progress.expected is not None else ""
    known = f", {progress.missing:,} missing" if progress.missing else ""
    limited = "; the run was limited" if progress.limited else ""
    yield f"{total}{progress.predicted:,} are predicted, {progress.failed:,} failed{known}{limited}"
    failed = [f"{name} {its.failed:,}" for name, its in progress.datasets.items() if its.failed]
    if failed and len(progress.datasets) > 1:
        yield f"failed: {_listed(failed)}"
    if empty := [name for name, score in scores.items() if score.score is None]:
        yield f"without records ({len(empty)} of {len(scores)}): {_listed(empty)}"
    if progress.absent:
        yield f"absent, without a file of predictions: {_listed(progress.absent)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
