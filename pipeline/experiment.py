"""One experiment from configuration to prediction files: checks, run record, model, records."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import logging
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import store
from pipeline.batches import BatchSize
from pipeline.config import ExperimentConfig, without_other_tasks
from pipeline.runner import Outcome, run_records, select_datasets, select_records
from tasks import get_task
from tasks.base import Engine, GenerationTask, Record, Task
from tasks.errors import UserError

if TYPE_CHECKING:
    from pipeline.distributed import Workers

logger = logging.getLogger(__name__)

VERSIONED_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate")

MOST_DIFFERENCES = 8

LoadEngine = Callable[[ExperimentConfig], Engine]


def run_experiment(
    cfg: ExperimentConfig,
    results: Path,
    workers: Workers,
    load_engine: LoadEngine,
    *,
    window: int,
    overwrite: bool = False,
) -> dict[str, Outcome]:
    """Predict what is still to do of one experiment. Returns the outcome by data set.

    `window` is W, resolved; `load_engine` is called only if there is work. Nothing is written or removed before the
    configuration, the folder and the data are known to be good. Raises `UserError` for a user's mistake.
    """
    task = get_task(cfg.task)
    folder = store.experiment_folder(results, task, cfg.exp_name)
    if not overwrite:
        check_resumable(folder, task, cfg)
    records = {dataset: select_records(task, cfg, dataset) for dataset in select_datasets(task, cfg)}
    if overwrite:
        # The old results go only when the new model is there.
        load_engine(cfg)
    if workers.is_main:
        store.make_folder(folder)
    with store.lock(folder) if workers.is_main else contextlib.nullcontext():
        if workers.is_main:
            if overwrite:
                store.clear(folder)
            else:
                check_resumable(folder, task, cfg)  # another run may have begun since
            before = store.read_run(folder) if store.has_predictions(folder) else None
            record = run_record(cfg, window, workers.processes, records, before)
            store.write_json(folder / store.RUN_FILE, record)

        def get_engine() -> Engine:
            engine = load_engine(cfg)
            if workers.is_main:
                note: dict[str, Any] = {"device": _devices(record["device"], cfg, workers)}
                if isinstance(task, GenerationTask):
                    settings = engine.generation_settings()
                    if before is not None:
                        check_generation(folder, before, settings)
                    note["generation"] = settings
                store.write_json(folder / store.RUN_FILE, {**record, **note})
            return engine

        return run_records(task, cfg.options, get_engine, folder, records, workers, batch_size_of(cfg))


def _devices(before: str | None, cfg: ExperimentConfig, workers: Workers) -> str:
    """What predicts from now on, behind what did before a run was resumed elsewhere."""
    from models.DPI.loading import device_name

    names = [*(before.split(", ") if before else []), device_name(cfg.device or workers.device())]
    return ", ".join(dict.fromkeys(names))


def check_generation(folder: Path, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise `UserError` if what is there was decoded with other settings than what comes.

    Version 0.1 kept the model's own, which changes nothing where none had to be set aside.
    """
    old = before.get("generation") or {**settings, "set_aside": {}}
    if found := list(store.differences({"generation": old}, {"generation": settings})):
        raise UserError(
            f"{str(folder)!r} was decoded with other settings: {'; '.join(found[:MOST_DIFFERENCES])}. Choose another"
            " exp_name, or begin anew with --overwrite"
        )


def batch_size_of(cfg: ExperimentConfig) -> BatchSize:
    """The configuration's; 1 for "auto" where processes hold pieces of one model, which must batch alike."""
    if cfg.batch_size == "auto" and cfg.tp_plan is not None:
        logger.warning("batch_size = auto is 1 with tp_plan: processes may see different free memory; give a number")
        return 1
    return cfg.batch_size


def check_resumable(folder: Path, task: Task, cfg: ExperimentConfig) -> None:
    """Raise `UserError` if the folder holds something else than the beginning of this experiment.

    A run that ended before its first prediction, at a misspelt model say, holds nothing.
    """
    run = store.read_run(folder)
    if run is None:
        if any(folder.glob("*.jsonl")):
            raise UserError(
                f"{str(folder)!r} has prediction files but no {store.RUN_FILE}; choose another exp_name, or --overwrite"
            )
        return
    if not store.has_predictions(folder):
        return
    old = without_other_tasks(run["config"], task)
    old.setdefault("trust_remote_code", False)  # records of version 0.1 do not say
    before = {key: value for key, value in old.items() if key not in cfg.may_change()}
    found = list(store.differences(before, cfg.resumable_form()))
    if found:
        more = f" and {len(found) - MOST_DIFFERENCES} more" if len(found) > MOST_DIFFERENCES else ""
        raise UserError(
            f"{str(folder)!r} was made with another configuration: {'; '.join(found[:MOST_DIFFERENCES])}{more}."
            " Choose another exp_name, or begin anew with --overwrite"
        )


def run_record(
    cfg: ExperimentConfig,
    window: int,
    processes: int,
    records: Mapping[str, list[Record]],
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What `run.json` holds. `records` counts by data set; a resumed run keeps the larger count of the two."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    limited = cfg.test or cfg.limit is not None
    counts = {name: {"records": len(found), "limited": limited} for name, found in records.items()}
    for name, old in (before or {}).get("datasets", {}).items():
        counts[name] = max(old, counts.get(name, old), key=lambda entry: (entry["records"], not entry["limited"]))
    return {
        "config": cfg.flat(),
        "window": window,
        "seed": cfg.options.seed,
        "datasets": counts,
        "versions": {"python": platform.python_version(), **_package_versions()},
        "device": (before or {}).get("device"),
        "git_revision": git_revision(),
        "processes": processes,
        "generation": (before or {}).get("generation"),
        "started": (before or {}).get("started", now),
        "resumed": now if before else None,
    }


def _package_versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The commit of this checkout, with "-dirty" behind it if tracked files are changed; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
