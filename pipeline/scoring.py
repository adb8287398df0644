"""Scores prediction files into `result.json` and its companions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.config import ExperimentConfig, build_config, without_other_tasks
from pipeline.shapes import check_line
from tasks.base import Line, Task
from tasks.errors import BadFieldError, UserError
from tasks.results import DETAIL_FILE, RESULT_FILE

logger = logging.getLogger(__name__)

SCORED_KEYS = ("model", "method", "params", "max_pe", "seed", "window")
"""What `result_detail.json` repeats of the run record, so that scores say what they are of."""


@dataclass(frozen=True)
class DatasetProgress:
    """How complete a data set's predictions are. records: as the run record has them; None where there is none."""

    records: int | None
    predicted: int
    failed: int

    def cells(self) -> tuple[str, str]:
        """Records and failures in a table."""
        return "-" if self.records is None else f"{self.records:,}", f"{self.failed:,}"


@dataclass(frozen=True)
class Progress:
    """How complete an experiment's predictions are, over all its data sets.

    `limited` says that the run was cut short on purpose (`limit` or `test`). `datasets` has what there are lines of,
    and what the run record names; `absent` names the others that the benchmark would have.
    """

    predicted: int
    failed: int
    expected: int | None
    limited: bool
    datasets: Mapping[str, DatasetProgress] = field(default_factory=dict)
    absent: tuple[str, ...] = ()

    @property
    def missing(self) -> int:
        """Records without a line."""
        return 0 if self.expected is None else max(self.expected - self.predicted - self.failed, 0)

    @property
    def complete(self) -> bool:
        """Whether every record that the benchmark has is predicted."""
        return self.expected == self.predicted and not self.limited

    def describe(self) -> str:
        """One or two words for tables and legends; empty for a complete experiment."""
        if self.expected is None:
            return ""
        parts = []
        if self.predicted != self.expected:
            parts.append(f"incomplete {self.predicted}/{self.expected}")
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.limited:
            parts.append("limited")
        return ", ".join(parts)


class NothingPredictedError(UserError):
    """An experiment without predictions: nothing is wrong with it, there is only nothing yet."""


def score_experiment(folder: Path, task: Task) -> Progress:
    """Score one experiment and write its result files. Raises `UserError` where it cannot."""
    run = store.read_run(folder)
    lines = read_predictions(folder)
    if not lines:
        where = "has no prediction files" if folder.is_dir() else "does not exist"
        raise NothingPredictedError(f"experiment {str(folder)!r} {where}; pred.py writes them")
    cfg = config_of(run, folder, task)
    options = None if cfg is None else cfg.options
    good = {name: [line for line in found if not store.is_failed(line)] for name, found in lines.items()}
    documents = scored(task, options, good, folder)
    progress = measure(run, lines)
    if cfg is None or not cfg.test:
        wanted = (cfg.tasks if cfg is not None else ()) or task.datasets()
        # A scorer may know a foreign file by another name than its own.
        there = {*lines, *(documents[RESULT_FILE] if isinstance(documents[RESULT_FILE], Mapping) else ())}
        absent = tuple(name for name in wanted if name not in there) if len(wanted) > 1 else ()
        progress = replace(progress, absent=absent)
    documents[DETAIL_FILE] = {**documents.get(DETAIL_FILE, {}), "run": _run_summary(run, cfg, progress)}
    for name, content in documents.items():
        store.write_json(folder / name, content)
    if progress.describe():
        logger.warning("%s: %s", folder.name, progress.describe())
    return progress


def config_of(run: Mapping[str, Any] | None, folder: Path, task: Task) -> ExperimentConfig | None:
    """The configuration of a folder's run record; None of foreign predictions, which have none.

    Raises `UserError` where the benchmark needs one, or it is another benchmark's.
    """
    if run is None and not task.scores_foreign:
        raise UserError(f"{str(folder)!r} has no {store.RUN_FILE}, which {task.name} needs; run pred.py")
    if run is not None and run["config"]["task"] != task.name:
        raise UserError(f"{str(folder)!r} is an experiment of task {run['config']['task']!r}, not {task.name!r}")
    return None if run is None else config_of_run(run, task, str(folder / store.RUN_FILE))


def scored(task: Task, options: Any, lines: Mapping[str, Sequence[Line]], folder: Path) -> dict[str, Any]:
    """`Task.score` of lines from files in that folder. Raises `UserError` with file, line and field of a wrong one."""
    try:
        return task.score(options, lines)
    except store.MissingField as error:
        raise UserError(f"{error.place} lacks the field {error}, which {task.name} scores") from None
    except BadFieldError as error:
        place = error.line.place if isinstance(error.line, store.FileLine) else str(folder)
        raise UserError(f"{place}: {error}; restore the file, or run pred.py --overwrite") from None


def config_of_run(run: Mapping[str, Any], task: Task, source: str) -> ExperimentConfig:
    """The configuration of a run record, with the window filled in where the model's own was used."""
    content = {key: value for key, value in without_other_tasks(run["config"], task).items() if value is not None}
    if run.get("window"):
        content.setdefault("ori_max_position_embeddings", run["window"])
    return build_config(content, source)


def read_predictions(folder: Path) -> dict[str, list[Line]]:
    """Prediction lines by data set, one line per record. A file without lines is left out."""
    found = {path.stem: _read_file(path) for path in sorted(folder.glob("*.jsonl")) if not path.name.startswith(".")}
    return {name: lines for name, lines in found.items() if lines}


def _read_file(path: Path) -> list[Line]:
    """The lines of a prediction file, one per record, in their right shape; what was mended is said."""
    lines = store.read_lines(path)
    for line in lines:
        place = line.place if isinstance(line, store.FileLine) else str(path)
        check_line(line, place)
        if isinstance(line.get("answers"), str):
            logger.warning("%s: answers is a text, not a list; it is taken as the only answer", place)
            line["answers"] = [line["answers"]]
        if "error" in line and line["error"] is None:
            logger.warning("%s: error is null; the line counts as %s", place, _verdict(line))
        elif "error" not in line and store.is_failed(line):
            logger.warning("%s: the prediction is null; the line counts as failed", place)
    kept = store.best_lines(lines)
    repeated = sum(not store.is_failed(line) for line in lines) - sum(not store.is_failed(line) for line in kept)
    if repeated:
        logger.warning("%s: %d predictions repeat the id of an earlier one and are left out", path, repeated)
    return kept


def _verdict(line: Line) -> str:
    return "failed" if store.is_failed(line) else "predicted"


def measure(run: Mapping[str, Any] | None, lines: Mapping[str, Sequence[Line]]) -> Progress:
    """How complete predictions are, by the record counts in the run record."""
    failed = sum(store.is_failed(line) for found in lines.values() for line in found)
    predicted = sum(len(found) for found in lines.values()) - failed
    counts = {} if run is None else run["datasets"]
    datasets = {}
    for name in dict.fromkeys([*lines, *counts]):
        bad = sum(store.is_failed(line) for line in lines.get(name, ()))
        records = counts[name]["records"] if name in counts else None
        datasets[name] = DatasetProgress(records, len(lines.get(name, ())) - bad, bad)
    if run is None:
        return Progress(predicted, failed, None, False, datasets)
    limited = any(entry["limited"] for entry in counts.values())
    return Progress(predicted, failed, sum(entry["records"] for entry in counts.values()), limited, datasets)


def _run_summary(run: Mapping[str, Any] | None, cfg: ExperimentConfig | None, progress: Progress) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "predicted": progress.predicted,
        "failed": progress.failed,
        "expected": progress.expected,
        "limited": progress.limited,
    }
    if run is not None and cfg is not None:
        flat = cfg.flat()
        summary |= {key: flat[key] for key in SCORED_KEYS if key in flat}
        summary |= {key: run.get(key) for key in ("window", "versions", "device")}
    return summary
