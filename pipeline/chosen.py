"""Which experiments `--exp` means."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from models.mistakes import did_you_mean
from pipeline import store
from tasks import get_task, task_names
from tasks.base import Task
from tasks.errors import UserError
from tasks.results import RESULT_FILE

logger = logging.getLogger(__name__)

ALL = "all"


def holds_predictions(folder: Path) -> bool:
    """Whether an experiment can be scored."""
    return store.has_predictions(folder)


def holds_anything(folder: Path) -> bool:
    """Whether an experiment has predictions or scores."""
    return store.has_predictions(folder) or (folder / RESULT_FILE).exists()


def chosen_experiments(results: Path, task: Task, name: str, holds: Callable[[Path], bool]) -> list[Path]:
    """The folder of that name, or all that hold something. Raises `UserError` where there is none.

    A folder whose run record cannot be read counts, so that whoever reads it names what is wrong.
    """
    if name != ALL:
        folder = store.experiment_folder(results, task, name)
        if folder.is_dir():
            return [folder]
        raise UserError(f"experiment {str(folder)!r} does not exist{_hint(results, task, name)}")
    found = store.list_experiments(results, task)
    kept = [folder for folder in found if holds(folder) or not _is_readable(folder)]
    if not kept:
        raise UserError(
            f"no experiment of {task.name!r} in {str(found[0].parent)!r} has predictions; run pred.py again"
        )
    if empty := [folder.name for folder in found if folder not in kept]:
        logger.warning("without predictions, left out: %s", ", ".join(empty))
    return kept


def _hint(results: Path, task: Task, name: str) -> str:
    """Where an experiment may be that is not there: of another benchmark, or under a name like it."""
    others = [other for other in map(get_task, task_names()) if other.name != task.name]
    if its := [other.name for other in others if name in (path.name for path in _listed(results, other))]:
        return f"; it is one of --task {' and --task '.join(its)}"
    return did_you_mean(name, [path.name for path in _listed(results, task)]) or "; pred.py writes experiments"


def _listed(results: Path, task: Task) -> list[Path]:
    try:
        return store.list_experiments(results, task)
    except UserError:
        return []


def _is_readable(folder: Path) -> bool:
    try:
        store.read_run(folder)
    except UserError:
        return False
    return True
