"""Tables and the picture of scored experiments: Excel files, Markdown, and what the benchmark draws.

GALI's experiments go to `*_dpi.xlsx` with their parameters, all others to `*_repro.xlsx`, as the paper's authors have
it; both, and `*.md` with all of them, have a column that says which experiments are incomplete. Which scores there are
and how they look is the benchmark's (`tasks/base.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from openpyxl.worksheet.worksheet import Worksheet

from pipeline import store
from pipeline.scoring import measure, read_predictions
from pipeline.text import markdown_cell, printable
from tasks.base import Task
from tasks.errors import UserError
from tasks.results import COMPLETE, DETAIL_FILE, NO_RUN_RECORD, RESULT_FILE, Experiment, Score

logger = logging.getLogger(__name__)

OUR_METHOD = "dpi"
AVERAGE = "average"


def read_experiment(folder: Path, task: Task) -> Experiment:
    """An experiment with its scores; one that is not scored yet has none and says so in its status."""
    run = store.read_run(folder)
    files = dict.fromkeys([*task.result_files, DETAIL_FILE])
    results = {name: store.read_json(folder / name) for name in files if (folder / name).exists()}
    detail = results.get(DETAIL_FILE, {})
    if not isinstance(detail, dict) or not isinstance(detail.get("run", {}), dict):
        raise UserError(f"{str(folder / DETAIL_FILE)!r}: it, or its 'run', is no JSON object; run eval.py again")
    progress = measure(run, read_predictions(folder))
    status = [progress.describe() if run else NO_RUN_RECORD]
    if RESULT_FILE not in results:
        status.append("not scored")
    else:
        scored = detail.get("run", {}).get("predicted", progress.predicted)
        if scored != progress.predicted:
            status.append(f"scored at {scored}")
    if progress.failed and not progress.predicted:
        status.append("every record failed")
    config = run["config"] if run else {}
    return Experiment(
        name=printable(folder.name),
        method=None if config.get("method") is None else printable(config["method"]),
        model=None if config.get("model") is None else printable(config["model"]),
        window=run["window"] if run else None,
        target=config.get("max_pe"),
        params=config.get("params", {}),
        status=", ".join(part for part in status if part) or COMPLETE,
        results=results,
        scores={file: _columns(folder, task, file, results) for file in task.result_files if file in results},
    )


def _columns(folder: Path, task: Task, file: str, results: Mapping[str, Any]) -> dict[str, Score]:
    """The scores of a result file. Raises `UserError`, from the error itself, where it has another shape."""
    try:
        found = task.columns(file, results)
        return {printable(name): _checked(score) for name, score in found.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"{str(folder / file)!r} has not the shape that {task.name} writes ({said})") from error


def _checked(score: Score) -> Score:
    """The score. Raises `TypeError` where a value of it is no number."""
    for value in (score.score, score.stderr, score.count, *(score.interval or ())):
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise TypeError(f"{value!r} is no number")
    return score


def is_ours(experiment: Experiment) -> bool:
    """Whether an experiment is GALI's; files that another program wrote say so by their name."""
    return experiment.method == OUR_METHOD if experiment.method is not None else OUR_METHOD in experiment.name


def read_experiments(folders: Sequence[Path], task: Task) -> tuple[list[Experiment], list[UserError]]:
    """The experiments that can be read, and what is wrong with the others."""
    experiments, problems = [], []
    for folder in folders:
        try:
            experiments.append(read_experiment(folder, task))
        except UserError as error:
            problems.append(error)
    return experiments, problems


def collect(folders: Sequence[Path], task: Task, out: Path) -> list[Path]:
    """Write tables and the picture of experiments into the folder `out`; returns the files.

    Raises `UserError` if none of them is scored, or one cannot be read.
    """
    return write_collection([read_experiment(folder, task) for folder in folders], task, out)


def write_collection(experiments: Sequence[Experiment], task: Task, out: Path) -> list[Path]:
    """`collect` for experiments that are read already."""
    experiments = sorted(experiments, key=_order)
    scored = [experiment for experiment in experiments if experiment.result is not None]
    if not scored:
        names = ", ".join(experiment.name for experiment in experiments[:5])
        raise UserError(f"nothing to collect: no {RESULT_FILE} in {names}; eval.py --task {task.name} writes it")
    for experiment in experiments:
        if experiment.needs_mark:
            logger.warning("%s: %s", experiment.name, experiment.status)
    columns = columns_of(experiments)
    written = []
    for kind, ours in (("dpi", True), ("repro", False)):
        path = out / f"{task.prefix}_{kind}.xlsx"
        write_excel(path, [e for e in experiments if is_ours(e) == ours], task, columns)
        written.append(path)
    path = out / f"{task.prefix}.md"
    write_markdown(path, experiments, task, columns)
    return [*written, path, *_draw(scored, task, out / f"{task.prefix}.png")]


def _draw(experiments: Sequence[Experiment], task: Task, path: Path) -> list[Path]:
    """The benchmark's picture, where it has one."""
    drawn = [experiment for experiment in experiments if experiment.scores.get(RESULT_FILE)]
    for experiment in experiments:
        if experiment not in drawn:
            logger.warning("%s has no scores (%s); it is left out of the picture", experiment.name, experiment.status)
    figure = task.draw(drawn) if drawn else None
    if figure is None:
        return []
    from tasks.pictures.style import save  # with matplotlib, which only pictures need

    with store.replacing(path) as file:
        save(figure, file)
    return [path]


def _order(experiment: Experiment) -> tuple[Any, ...]:
    """By model, window and target, methods in one order everywhere."""
    from models.DPI.methods import METHODS  # with PyTorch, which takes seconds

    methods = list(METHODS)
    method = methods.index(experiment.method) if experiment.method in methods else len(methods)
    return experiment.model or "", experiment.window or 0, experiment.target or 0, method, experiment.name


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


def write_excel(path: Path, experiments: Sequence[Experiment], task: Task, columns: Sequence[str]) -> None:
    """One sheet per result file (`result`, and LongBench's `result_o`, `result_t`), whole or not at all.

    Behind a score stands its standard error, where any experiment knows it.
    """
    present = [file for file in task.result_files if any(file in e.results for e in experiments)]
    with store.replacing(path) as target, pd.ExcelWriter(target, engine="openpyxl") as writer:
        for file in present or [RESULT_FILE]:
            name = file.removesuffix(".json")
            table = _excel_table(experiments, task, file, columns)
            table.to_excel(writer, sheet_name=name, index=False)
            _as_text(writer.sheets[name])
            writer.sheets[name].freeze_panes = "B2"
            writer.sheets[name].column_dimensions["A"].width = 34


def _parameter(value: Any) -> Any:
    """A parameter as a cell: a number, or a text without what Excel refuses."""
    return value if value is None or isinstance(value, int | float) else printable(str(value))


def _as_text(sheet: Worksheet) -> None:
    """Mark texts that a spreadsheet would compute as texts: names in a foreign run may begin as formulas do."""
    for row in sheet.iter_rows():
        for cell in row:
            if isinstance(cell.value, str) and cell.value.startswith(("=", "+", "-", "@", "\t", "\r")):
                cell.data_type = "s"
                cell.quotePrefix = True


def _excel_table(experiments: Sequence[Experiment], task: Task, file: str, columns: Sequence[str]) -> pd.DataFrame:
    """One row per experiment: what it is, its status and parameters, its scores from one result file."""
    heads = [_head(experiment) for experiment in experiments]
    rows = [scores_of(experiment, task, file, columns) for experiment in experiments]
    table: dict[str, list[Any]] = {name: [head[name] for head in heads] for name in HEAD}
    shown = _shown(columns, rows)
    for name in sorted({name for experiment in experiments for name in experiment.params}):
        column = f"params.{name}" if name in (*HEAD, *shown) else name
        table[printable(column)] = [_parameter(experiment.params.get(name)) for experiment in experiments]
    for name in shown:
        scores = [row[name] for row in rows]
        table[name] = [None if score is None else score.score for score in scores]
        errors = [None if score is None else score.stderr for score in scores]
        if any(error is not None for error in errors):
            table[f"{name} ±"] = errors
    return pd.DataFrame(table)


def write_markdown(path: Path, experiments: Sequence[Experiment], task: Task, columns: Sequence[str]) -> None:
    """All experiments in one table, scores with their intervals and without parameters, whole or not at all."""
    rows = [scores_of(experiment, task, RESULT_FILE, columns) for experiment in experiments]
    cells = [
        {name: "" if value is None else markdown_cell(str(value)) for name, value in _head(experiment).items()}
        | {
            markdown_cell(name): score.text(task.digits) if (score := row[name]) else ""
            for name in _shown(columns, rows)
        }
        for experiment, row in zip(experiments, rows, strict=True)
    ]
    table = pd.DataFrame(cells).to_markdown(index=False, disable_numparse=True)
    store.write_text(path, f"# {task.label}\n\n{table}\n")


HEAD = ("experiment", "method", "model", "window", "target", "status")


def _head(experiment: Experiment) -> dict[str, Any]:
    """What an experiment is."""
    values = (experiment.name, experiment.method, experiment.model, experiment.window, experiment.target)
    return dict(zip(HEAD, (*values, experiment.status), strict=True))


def _shown(columns: Sequence[str], rows: Iterable[dict[str, Score | None]]) -> list[str]:
    """The columns, with the average where there is one."""
    return [*columns, *([AVERAGE] if any(row[AVERAGE] is not None for row in rows) else [])]


def _text(score: Score | None, digits: int) -> str:
    return "" if score is None else score.text(digits)
