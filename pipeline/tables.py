"""Tables of scored experiments: Excel workbooks and Markdown. Which scores there are is the benchmark's to say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from openpyxl import Workbook
from openpyxl.cell import Cell
from openpyxl.styles import Alignment, Font
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet

from pipeline import store
from pipeline.paper import PUBLISHED, SOURCE
from pipeline.text import markdown_cell, printable
from tasks.base import Task
from tasks.results import RESULT_FILE, Experiment, Score

HEAD = ("experiment", "method", "model", "window", "target", "device", "status")
AVERAGE = "average"
AVERAGED = "averaged"
"""How many scores an average is over: a column where experiments differ in it, for such averages do not compare."""
WIDEST = 60
"""Characters of a column, however long its texts are."""
WHOLE = "#,##0"
PUBLISHED_NOTE = (
    f"Rows called `paper` have what GALI's paper ({SOURCE}) reports for the same model, window, target and method, in "
    "its table of that number; parameters may differ.\n"
)


def columns_of(experiments: Iterable[Experiment]) -> list[str]:
    """Every score's name in the order in which results have them; lengths in numerical order."""
    found = dict.fromkeys(
        name for experiment in experiments for scores in experiment.scores.values() for name in scores
    )
    if all(name.isdecimal() for name in found):
        return sorted(found, key=int)
    return list(found)


def scores_of(experiment: Experiment, task: Task, file: str, columns: Sequence[str]) -> dict[str, Score | None]:
    """The scores of one result file by column, the average last; None where there is none."""
    scores = experiment.scores.get(file, {})
    return {**{name: scores.get(name) for name in columns}, AVERAGE: task.average(scores) if scores else None}


@dataclass(frozen=True)
class _Column:
    """A column of a sheet. number_format: of its cells, as Excel writes it."""

    head: str | int
    cells: Sequence[Any]
    number_format: str = "General"


def write_excel(path: Path, experiments: Sequence[Experiment], task: Task, columns: Sequence[str]) -> None:
    """One sheet per result file (`result`, and LongBench's `result_o`, `result_t`), whole or not at all.

    Behind a score stand the ends of its 95 % interval, "low" and "high", and where an experiment knows none its
    standard error, "±".
    """
    book = Workbook()
    book.remove(book.worksheets[0])
    present = [file for file in task.result_files if any(file in e.results for e in experiments)]
    for file in present or [RESULT_FILE]:
        sheet = book.create_sheet(file.removesuffix(".json"))
        for place, column in enumerate(_excel_columns(experiments, task, file, columns), start=1):
            _write_column(sheet, place, column)
        sheet.freeze_panes = "B2"
    with store.replacing(path) as target:
        book.save(target)


def _write_column(sheet: Worksheet, place: int, column: _Column) -> None:
    cells = [sheet.cell(row, place) for row in range(1, len(column.cells) + 2)]
    for cell, value in zip(cells, (column.head, *column.cells), strict=True):
        _put(cell, value, WHOLE if cell.row == 1 else column.number_format)
    cells[0].font = Font(bold=True)
    cells[0].alignment = Alignment(horizontal="left" if isinstance(column.cells[0], str) else "right")
    width = max(len(_shown_as(cell)) for cell in cells) + 2
    sheet.column_dimensions[get_column_letter(place)].width = min(width, WIDEST)


def _put(cell: Cell, value: Any, number_format: str) -> None:
    cell.value = value
    if isinstance(value, str):
        keep_text(cell)
    else:
        cell.number_format = number_format


def keep_text(cell: Cell) -> None:
    """A text stays a text: names in a foreign run may begin as formulas do, or be one of Excel's error codes."""
    cell.data_type = "s"
    cell.quotePrefix = str(cell.value).startswith(("=", "+", "-", "@", "\t", "\r"))


def _shown_as(cell: Cell) -> str:
    """A cell's text, as wide as Excel shows it."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, str | bool) or cell.number_format == "General":
        return str(value)
    if cell.number_format == WHOLE:
        return f"{value:,}"
    return f"{value:.{len(cell.number_format.partition('.')[2])}f}"


def _excel_columns(
    experiments: Sequence[Experiment], task: Task, file: str, columns: Sequence[str]
) -> Iterator[_Column]:
    """A row per experiment: what it is, its status and parameters, its scores from one result file."""
    heads = [_head(experiment) for experiment in experiments]
    rows = [scores_of(experiment, task, file, columns) for experiment in experiments]
    shown = _shown(columns, rows)
    for name in HEAD:
        yield _Column(name, [head[name] for head in heads], WHOLE)
    for name in sorted({name for experiment in experiments for name in experiment.params}):
        column = f"params.{name}" if name in (*HEAD, *shown) else name
        yield _Column(printable(column), [_parameter(experiment.params.get(name)) for experiment in experiments])
    lengths = all(name.isdecimal() for name in columns)
    digits = f"0.{'0' * task.digits}" if task.digits else "0"
    for name in shown:
        scores = [row[name] or Score(None) for row in rows]
        yield _Column(int(name) if lengths and name != AVERAGE else name, [score.score for score in scores], digits)
        if any(score.interval for score in scores):
            for end, word in enumerate(("low", "high")):
                ends = [score.interval[end] if score.interval else None for score in scores]
                yield _Column(f"{name} {word}", ends, digits)
        errors = [None if score.interval else score.stderr for score in scores]
        if any(error is not None for error in errors):
            yield _Column(f"{name} ±", errors, digits)
    if _differ_in_number(rows):
        yield _Column(AVERAGED, [(row[AVERAGE] or Score(None)).count for row in rows], WHOLE)


def _parameter(value: Any) -> Any:
    """A parameter as a cell: a number, or a text without what Excel refuses."""
    return value if value is None or isinstance(value, int | float) else printable(str(value))


def write_markdown(path: Path, experiments: Sequence[Experiment], task: Task, columns: Sequence[str]) -> None:
    """All experiments in one table, scores with their intervals and without parameters, whole or not at all."""
    rows = [scores_of(experiment, task, RESULT_FILE, columns) for experiment in experiments]
    shown = _shown(columns, rows)
    cells = []
    for experiment, row in zip(experiments, rows, strict=True):
        head = {name: "" if value is None else markdown_cell(str(value)) for name, value in _head(experiment).items()}
        found = {markdown_cell(name): (row[name] or Score(None)).text(task.digits) for name in shown}
        cells.append(head | found)
        if _differ_in_number(rows) and (average := row[AVERAGE]) is not None:
            cells[-1][AVERAGE] += f" (of {average.count})"
    table = pd.DataFrame(cells).to_markdown(index=False, disable_numparse=True)
    scores = [score for row in rows for score in row.values() if score]
    notes = [*_notes(scores), *(["\n" + PUBLISHED_NOTE] if any(e.status == PUBLISHED for e in experiments) else [])]
    store.write_text(path, f"# {task.label}: {task.measure}\n\n{table}\n{''.join(notes)}")


def _notes(scores: Sequence[Score]) -> Iterator[str]:
    """What stands beside a score, below the table."""
    if any(score.interval for score in scores):
        yield "\nIn brackets: 95 % confidence intervals.\n"
    if any(score.stderr and not score.interval for score in scores):
        yield "\nBehind ±: standard errors, from files without intervals; `eval.py` makes them anew.\n"


def _head(experiment: Experiment) -> dict[str, Any]:
    """What an experiment is, by the names of `HEAD`."""
    return {"experiment": experiment.name, **{name: getattr(experiment, name) for name in HEAD[1:]}}


def _shown(columns: Sequence[str], rows: Iterable[Mapping[str, Score | None]]) -> list[str]:
    """The columns, with the average where there is one."""
    return [*columns, *([AVERAGE] if any(row[AVERAGE] is not None for row in rows) else [])]


def _differ_in_number(rows: Iterable[Mapping[str, Score | None]]) -> bool:
    """Whether averages are over different numbers of scores."""
    return len({average.count for row in rows if (average := row[AVERAGE]) is not None}) > 1
