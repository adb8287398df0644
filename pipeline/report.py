"""Reads scored experiments and has their tables and their picture made.

GALI's experiments go to `*_dpi.xlsx` with their parameters, all others to `*_repro.xlsx`, as the paper's authors have
it; both, and `*.md` with all of them, have a column that says which experiments are incomplete. Which scores there are
and how they look is the benchmark's (`tasks/base.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.paper import with_published
from pipeline.scoring import SCORED_KEYS, Progress, measure, read_predictions
from pipeline.shapes import check_scored
from pipeline.tables import columns_of, write_excel, write_markdown
from pipeline.text import printable
from tasks.base import Task
from tasks.errors import UserError
from tasks.results import COMPLETE, DETAIL_FILE, NO_RUN_RECORD, RESULT_FILE, Experiment, Score

logger = logging.getLogger(__name__)

OUR_METHOD = "dpi"


def read_experiment(folder: Path, task: Task) -> Experiment:
    """An experiment with its scores; one that is not scored yet has none and says so in its status."""
    run = store.read_run(folder)
    files = dict.fromkeys([*task.result_files, DETAIL_FILE])
    results = {name: store.read_json(folder / name) for name in files if (folder / name).exists()}
    detail = results.get(DETAIL_FILE, {})
    if not isinstance(detail, dict) or not isinstance(detail.get("run", {}), dict):
        raise UserError(f"{str(folder / DETAIL_FILE)!r}: it, or its 'run', is no JSON object; run eval.py again")
    progress = _progress(folder, run, detail.get("run"))
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
        device=printable(run["device"]) if run and run["device"] else None,
    )


def _progress(folder: Path, run: Mapping[str, Any] | None, scored: Mapping[str, Any] | None) -> Progress:
    """How complete predictions are; where results lie without them, how complete they were when they were scored.

    scored: the details' "run". Raises `UserError` where that is needed and of another run than the run record.
    """
    lines = read_predictions(folder)
    if lines or run is None or scored is None:
        return measure(run, lines)
    place = repr(str(folder / DETAIL_FILE))
    check_scored(scored, place)
    now = {**run["config"], "window": run["window"]}
    both = [key for key in SCORED_KEYS if key in scored and key in now]
    if found := list(store.differences({key: scored[key] for key in both}, {key: now[key] for key in both})):
        raise UserError(f"{place} is of another run than {store.RUN_FILE} beside it: {found[0]}; score it again")
    return Progress(**{key: scored[key] for key in ("predicted", "failed", "expected", "limited")})


def _columns(folder: Path, task: Task, file: str, results: Mapping[str, Any]) -> dict[str, Score]:
    """The scores of a result file. Raises `UserError`, from the error itself, where it has another shape."""
    try:
        found = task.columns(file, results)
        return {printable(name): _checked(score) for name, score in found.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{str(folder / file)!r} has not the shape that {task.name} writes, or {DETAIL_FILE} beside it ({said})"
        ) from error


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
    experiments = in_order(experiments)
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
        chosen = [experiment for experiment in experiments if is_ours(experiment) == ours]
        if chosen:
            write_excel(path, chosen, task, columns)
            written.append(path)
        else:
            _leave_out(path, f"no experiment of {'GALI' if ours else 'another method'}")
    path = out / f"{task.prefix}.md"
    write_markdown(path, with_published(experiments, task, columns), task, columns)
    return [*written, path, *_draw(scored, task, out / f"{task.prefix}.png")]


def _leave_out(path: Path, reason: str) -> None:
    """Say that a file is not written. One of an earlier collection would be taken for one of this."""
    stale = path.is_file() or path.is_symlink()
    if stale:
        path.unlink()
    logger.info("%s: %s is %s", reason, path.name, "removed" if stale else "not written")


def _draw(experiments: Sequence[Experiment], task: Task, path: Path) -> list[Path]:
    """The benchmark's picture, where it has one."""
    drawn = [experiment for experiment in experiments if experiment.scores.get(RESULT_FILE)]
    for experiment in experiments:
        if experiment not in drawn:
            logger.warning("%s has no scores (%s); it is left out of the picture", experiment.name, experiment.status)
    from tasks.pictures.style import save  # with matplotlib, which only pictures need

    try:
        figure = task.draw(drawn) if drawn else None
        if figure is not None:
            with store.replacing(path) as file:
                save(figure, file)
            return [path]
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        # Scores had the right shape, so this may be a bug: the traceback goes to the log.
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"{str(path)!r} cannot be drawn from the {RESULT_FILE} of its experiments ({said})") from error
    _leave_out(path, "nothing to draw")
    return []


def in_order(experiments: Sequence[Experiment]) -> list[Experiment]:
    """As tables have them: by model, window and target, methods in one order everywhere."""
    return sorted(experiments, key=_order)


def _order(experiment: Experiment) -> tuple[Any, ...]:
    """By model, window and target, methods in one order everywhere."""
    from models.DPI.methods import METHODS  # with PyTorch, which takes seconds

    methods = list(METHODS)
    method = methods.index(experiment.method) if experiment.method in methods else len(methods)
    return experiment.model or "", experiment.window or 0, experiment.target or 0, method, experiment.name
