"""Tables of scored experiments: Excel files, Markdown, and the pictures of `pipeline/figures.py`.

GALI's experiments go to `*_dpi.xlsx` with their parameters, all others to `*_repro.xlsx`, as the paper's authors have
it; both, and `*.md` with all of them, have a column that says which experiments are incomplete.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import figures, store
from pipeline.scoring import DETAIL_FILE, measure, read_predictions
from tasks.base import Task
from tasks.errors import UserError

logger = logging.getLogger(__name__)

# File name prefixes; the authors' where they have one.
PREFIXES = {
    "longbench": "lb",
    "longbench_e": "lb_e",
    "leval": "le",
    "pg19": "pg19",
    "needle": "needle",
    "passkey_retrieval": "passkey",
}
RESULT_FILES = ("result.json", "result_o.json", "result_t.json")
AVERAGED = ("longbench", "longbench_e", "leval", "needle")
OUR_METHOD = "dpi"
COMPLETE = "complete"
NO_RUN_RECORD = "no run record"
"""Status of files that another program wrote: nobody says how many records there should be."""


@dataclass(frozen=True)
class Experiment:
    """A scored experiment. What only a run record knows is None for files that another program wrote."""

    name: str
    method: str | None
    model: str | None
    window: int | None
    target: int | None
    params: Mapping[str, Any]
    status: str
    results: Mapping[str, Any]

    @property
    def is_ours(self) -> bool:
        return self.method == OUR_METHOD if self.method is not None else "dpi" in self.name

    @property
    def needs_mark(self) -> bool:
        """Whether a picture must say that something is missing."""
        return self.status not in (COMPLETE, NO_RUN_RECORD)

    @property
    def result(self) -> Any:
        return self.results.get("result.json")


def read_experiment(folder: Path, task: Task) -> Experiment:
    """An experiment with its result files; one that is not scored yet has none and says so in its status."""
    run = store.read_run(folder)
    results = {name: store.read_json(folder / name) for name in RESULT_FILES if (folder / name).exists()}
    progress = measure(run, read_predictions(folder))
    status = [progress.describe() if run else NO_RUN_RECORD]
    if "result.json" not in results:
        status.append("not scored")
    elif (folder / DETAIL_FILE).exists():
        scored = store.read_json(folder / DETAIL_FILE).get("run", {}).get("predicted", progress.predicted)
        if scored != progress.predicted:
            status.append(f"scored at {scored}")
    config = run["config"] if run else {}
    return Experiment(
        name=folder.name,
        method=config.get("method"),
        model=config.get("model"),
        window=run["window"] if run else None,
        target=config.get("max_pe"),
        params=config.get("params", {}),
        status=", ".join(part for part in status if part) or COMPLETE,
        results=results,
    )


def collect(folders: Sequence[Path], task: Task, out: Path) -> list[Path]:
    """Write tables and pictures of experiments into the folder `out`; returns the files.

    Raises `UserError` if none of them is scored.
    """
    experiments = sorted((read_experiment(folder, task) for folder in folders), key=_order)
    scored = [experiment for experiment in experiments if experiment.result is not None]
    if not scored:
        names = ", ".join(experiment.name for experiment in experiments[:5])
        raise UserError(f"nothing to collect: no result.json in {names}; eval.py --task {task.name} writes it")
    for experiment in experiments:
        if experiment.needs_mark:
            logger.warning("%s: %s", experiment.name, experiment.status)
    prefix = PREFIXES[task.name]
    written = []
    for kind, ours in (("dpi", True), ("repro", False)):
        path = out / f"{prefix}_{kind}.xlsx"
        write_excel(path, [e for e in experiments if e.is_ours == ours], task.name, columns_of(experiments))
        written.append(path)
    path = out / f"{prefix}.md"
    write_markdown(path, experiments, task.name)
    return [*written, path, *figures.draw(task.name, scored, out / f"{prefix}.png")]


def _order(experiment: Experiment) -> tuple[Any, ...]:
    """By model, window and target, methods in one order everywhere."""
    methods = list(figures.STYLES)
    method = methods.index(experiment.method) if experiment.method in methods else len(methods)
    return experiment.model or "", experiment.window or 0, experiment.target or 0, method, experiment.name


def columns_of(experiments: Sequence[Experiment]) -> list[str]:
    """Every score's name in the order in which results have them; lengths in numerical order."""
    found = dict.fromkeys(
        name for experiment in experiments for result in experiment.results.values() for name in flatten(result)
    )
    if all(name.isdigit() for name in found):
        return sorted(found, key=int)
    return list(found)


def flatten(result: Any) -> dict[str, float | None]:
    """The scores in a result file by column name.

    A number stands for itself; an object with `LEval_score` for that; another object gives a column for each of its
    keys (LongBench-E's length buckets); a list is needle's cells, averaged over depths by length.
    """
    if isinstance(result, list):
        cells: dict[int, list[float]] = defaultdict(list)
        for cell in result:
            cells[cell["context_length"]].append(cell["score"])
        return {str(length): math.fsum(scores) / len(scores) for length, scores in sorted(cells.items())}
    scores: dict[str, float | None] = {}
    for name, value in result.items():
        if not isinstance(value, Mapping):
            scores[name] = value
        elif "LEval_score" in value:
            scores[name] = value["LEval_score"]
        else:
            scores |= {f"{name} {key}": part for key, part in value.items()}
    return scores


def average(scores: Mapping[str, float | None]) -> float | None:
    """The mean of the scores that are numbers, or None."""
    numbers = [value for value in scores.values() if isinstance(value, int | float)]
    return math.fsum(numbers) / len(numbers) if numbers else None


def table(
    experiments: Sequence[Experiment], task_name: str, file: str, columns: Sequence[str], *, params: bool
) -> pd.DataFrame:
    """One row an experiment: what it is, its status, its scores from one result file."""
    names = sorted({name for experiment in experiments for name in experiment.params}) if params else []
    rows = []
    for experiment in experiments:
        scores = flatten(experiment.results[file]) if file in experiment.results else {}
        row: dict[str, Any] = {
            "experiment": experiment.name,
            "method": experiment.method,
            "model": experiment.model,
            "window": experiment.window,
            "target": experiment.target,
            "status": experiment.status,
            **{name: experiment.params.get(name) for name in names},
            **{column: scores.get(column) for column in columns},
        }
        if task_name in AVERAGED:
            row["average"] = average(scores)
        rows.append(row)
    head = ["experiment", "method", "model", "window", "target", "status", *names, *columns]
    return pd.DataFrame(rows, columns=[*head, *(["average"] if task_name in AVERAGED else [])])


def write_excel(path: Path, experiments: Sequence[Experiment], task_name: str, columns: Sequence[str]) -> None:
    """One sheet a result file (`result`, and LongBench's `result_o`, `result_t`)."""
    present = [name for name in RESULT_FILES if any(name in e.results for e in experiments)]
    with pd.ExcelWriter(path, engine="openpyxl") as writer:
        for name in present or ["result.json"]:
            frame = table(experiments, task_name, name, columns, params=True)
            frame.to_excel(writer, sheet_name=name.removesuffix(".json"), index=False)
            sheet = writer.sheets[name.removesuffix(".json")]
            sheet.freeze_panes = "B2"
            sheet.column_dimensions["A"].width = 34


def write_markdown(path: Path, experiments: Sequence[Experiment], task_name: str) -> None:
    """All experiments in one table, without parameters."""
    frame = table(experiments, task_name, "result.json", columns_of(experiments), params=False)
    digits = 4 if task_name in ("needle", "passkey_retrieval") else 2
    text = frame.map(lambda value: _cell(value, digits)).to_markdown(index=False, disable_numparse=True)
    path.write_text(f"# {task_name}\n\n{text}\n", encoding="utf-8")


def _cell(value: Any, digits: int) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.{digits}f}"
    return f"{value:g}" if isinstance(value, float) else str(value)
