"""One experiment from configuration to prediction files: checks, run record, model, records."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import logging
import os
import platform
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import store
from pipeline.batches import BatchSize
from pipeline.config import ExperimentConfig, without_other_tasks
from pipeline.progress import Observer, Times, Tracker, check_tracker
from pipeline.runner import Outcome, count_left, digest, run_records, select_datasets, select_records
from tasks import get_task
from tasks.base import Engine, GenerationTask, Record, Task
from tasks.errors import AbsentDataError, UserError

if TYPE_CHECKING:
    from pipeline.distributed import Workers

logger = logging.getLogger(__name__)

INSTALLED = __name__.startswith("gali.")
"""Whether this is the installed package, and no checkout."""
VERSIONED_PACKAGES = (*(["gali"] if INSTALLED else []), "torch", "transformers", "tokenizers", "datasets", "accelerate")

MOST_DIFFERENCES = 8

LoadEngine = Callable[[ExperimentConfig], Engine]


def run_experiment(
    cfg: ExperimentConfig,
    results: Path,
    workers: Workers,
    load_engine: LoadEngine,
    *,
    window: int,
    model_revision: str | None = None,
    automatic: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    title: str = "",
) -> dict[str, Outcome]:
    """Predict what is still to do of one experiment. Returns the outcome by data set.

    `window` is W, resolved; `automatic` is for the run record, see `pipeline.automatic`; `load_engine` is called only
    if there is work. Nothing is written or removed before the configuration, the folder and the data are known to be
    good, and the model is there and decodes as it did: a start that fails leaves everything as it was. title: what
    stands before the progress bar. Raises `UserError` for a user's mistake.
    """
    check_tracker(cfg)
    task = get_task(cfg.task)
    folder, cfg, records = read_experiment(cfg, results, overwrite=overwrite)
    if workers.processes > 1:
        workers.agree("records", digest(records), "give all machines the same data_dir, or data_revision")
    if not overwrite:
        check_model_revision(folder, cfg, model_revision)
    if overwrite or not store.has_predictions(folder) or count_left(folder, records, workers):
        engine = load_engine(cfg)
        if not overwrite:
            check_decoding(folder, decoding_of(engine, task, cfg))
    if workers.is_main:
        store.make_folder(folder)
    with store.lock(folder) if workers.is_main else contextlib.nullcontext():
        run: RunFile | None = None
        if workers.is_main:
            run = RunFile(
                cfg, folder, records, window=window, processes=workers.processes, model_revision=model_revision,
                automatic=automatic, overwrite=overwrite,
            )  # fmt: skip
        check_shared(folder, workers)

        def get_engine() -> Engine:
            from models.DPI.loading import device_name

            engine = load_engine(cfg)
            if run is not None:
                served_at = cfg.base_url
                device = device_name(cfg.device or workers.device()) if served_at is None else served_at
                run.note(device, decoding_of(engine, task, cfg))
            return engine

        with contextlib.ExitStack() as stack:
            observers: list[Observer] = []
            if workers.writes:
                observers.append(stack.enter_context(Times(folder, workers.rank, workers.processes)))
            if workers.is_main and cfg.tracker is not None:
                observers.append(stack.enter_context(Tracker(cfg, cfg.tracker)))
            return run_records(
                task, cfg.options, get_engine, folder, records, workers, batch_size_of(cfg),
                title=title, observers=observers,
            )  # fmt: skip


def decoding_of(engine: Engine, task: Task, cfg: ExperimentConfig) -> dict[str, Any] | None:
    """How an engine decodes, for the run record; None where nothing is generated and nothing is served."""
    generates = isinstance(task, GenerationTask) or cfg.engine != "transformers"
    return engine.generation_settings() if generates else None


def check_decoding(folder: Path, settings: Mapping[str, Any] | None) -> None:
    """`check_generation` of what lies in a folder, if anything does."""
    check_generation(folder, store.read_run(folder) if store.has_predictions(folder) else None, settings)


class RunFile:
    """An experiment's run record while it runs. One process writes it: the one that holds the folder's lock."""

    def __init__(
        self,
        cfg: ExperimentConfig,
        folder: Path,
        records: Mapping[str, list[Record]],
        *,
        window: int,
        processes: int,
        model_revision: str | None = None,
        automatic: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Begin a run, or go on with one; see `run_experiment`. Raises `UserError` if the folder is another one's."""
        if overwrite:
            store.clear(folder)
        else:
            check_resumable(folder, get_task(cfg.task), cfg)  # another run may have begun since
            check_model_revision(folder, cfg, model_revision)
        self._folder = folder
        self._before = store.read_run(folder) if store.has_predictions(folder) else None
        self._content = run_record(cfg, window, processes, records, self._before, model_revision, automatic)
        store.write_json(folder / store.RUN_FILE, self._content)

    def note(self, device: str, generation: Mapping[str, Any] | None) -> None:
        """Write down what predicts, behind what did before, and how it decodes; None for what does not generate.

        Raises `UserError` if what is there was decoded otherwise.
        """
        names = [*(before.split(", ") if (before := self._content["device"]) else []), device]
        content = {**self._content, "device": ", ".join(dict.fromkeys(names))}
        check_generation(self._folder, self._before, generation)
        if generation is not None:
            content["generation"] = generation
        if content != self._content:
            self._content = content
            store.write_json(self._folder / store.RUN_FILE, content)


def check_shared(folder: Path, workers: Workers) -> None:
    """Raise `UserError` in all processes if some do not see what the first one wrote: their folder is another."""
    if workers.processes == 1:
        return
    path = folder / store.RUN_FILE
    wanted = workers.from_first(path.read_bytes)
    there = store.wait_until(lambda: path.is_file() and path.read_bytes() == wanted)
    hosts = [host for host, sees in workers.gather((socket.gethostname(), there)) if not sees]
    if hosts:
        raise UserError(
            f"{str(folder)!r} on {', '.join(dict.fromkeys(hosts))} is not the folder of the first process; give "
            "--results a folder that all machines share"
        )


def check_generation(folder: Path, before: Mapping[str, Any] | None, settings: Mapping[str, Any] | None) -> None:
    """Raise `UserError` if what is there was decoded with other settings than what comes.

    before: the run record; None where there is nothing yet. settings: None where nothing is decoded. Version 0.1 kept
    the model's own, which changes nothing where none had to be set aside.
    """
    if before is None or settings is None:
        return
    old = before.get("generation") or {**settings, "set_aside": {}}
    old, settings = ({k: v for k, v in x.items() if k != "shares_prefixes"} for x in (old, settings))  # may change
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


def read_experiment(
    cfg: ExperimentConfig, results: Path, *, overwrite: bool
) -> tuple[Path, ExperimentConfig, dict[str, list[Record]]]:
    """An experiment's folder, its configuration with the data's commit as it was before, and its records.

    Writes nothing. Raises `UserError` where a run could not begin or go on.
    """
    task = get_task(cfg.task)
    folder = store.experiment_folder(results, task, cfg.exp_name)
    check_place(folder)
    if not overwrite:
        check_resumable(folder, task, cfg)
        cfg = _with_revision_of(folder, task, cfg)
    return folder, cfg, read_records(task, cfg)


def check_place(folder: Path) -> None:
    """Raise `UserError` if a folder cannot be made or written to."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UserError(f"cannot make the folder {str(folder)!r}: {str(place)!r} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to the folder {str(folder)!r}: no permission in {str(place)!r}")


def _with_revision_of(folder: Path, task: Task, cfg: ExperimentConfig) -> ExperimentConfig:
    """The configuration with the commit of hub data that an experiment began with, so that it goes on with the same.

    Raises `UserError` if the configuration asks for another one.
    """
    before = ((store.read_run(folder) or {}).get("data") or {}).get("revision")
    if not isinstance(before, str) or not store.has_predictions(folder) or cfg.options.data_dir is not None:
        return cfg
    if cfg.options.data_revision is not None:
        now = (task.data_source(cfg.options) or {}).get("revision")
        if now != before:
            raise UserError(
                f"{str(folder)!r} was made with data of revision {before}, and data_revision = "
                f"{cfg.options.data_revision!r} is {now}. Choose another exp_name, or begin anew with --overwrite"
            )
    return cfg.model_copy(update={"options": cfg.options.model_copy(update={"data_revision": before})})


def with_model_revision(cfg: ExperimentConfig, results: Path, *, overwrite: bool) -> ExperimentConfig:
    """The configuration with the commit of the model that its experiment began with, so that it goes on with the same.

    A configuration that names a revision keeps it; `check_model_revision` compares. Raises `UserError` for a run record
    that is broken.
    """
    if overwrite or cfg.model_revision is not None:
        return cfg
    folder = store.experiment_folder(results, get_task(cfg.task), cfg.exp_name)
    run = store.read_run(folder) or {}
    before = run.get("model_revision")
    # Of another model it is none: `check_resumable` refuses that.
    same = store.has_predictions(folder) and run.get("config", {}).get("model") == cfg.model
    return pinned(cfg, before) if same and isinstance(before, str) else cfg


def pinned(cfg: ExperimentConfig, revision: str | None) -> ExperimentConfig:
    """The configuration with a commit of its model; as it is for a folder or a short name, which have none."""
    if revision is None or "/" not in cfg.model or Path(cfg.model).expanduser().is_dir():
        return cfg
    return cfg.model_copy(update={"model_revision": revision})


def check_model_revision(folder: Path, cfg: ExperimentConfig, now: str | None) -> None:
    """Raise `UserError` if an experiment began with another commit of its model. now: the commit that would go on."""
    before = (store.read_run(folder) or {}).get("model_revision")
    if isinstance(before, str) and now is not None and now != before and store.has_predictions(folder):
        raise UserError(
            f"{str(folder)!r} was made with the model's revision {before}, and model_revision = "
            f"{cfg.model_revision!r} is {now}. Choose another exp_name, or begin anew with --overwrite"
        )


def read_records(task: Task, cfg: ExperimentConfig) -> dict[str, list[Record]]:
    """The records of a run by data set; those of the first one for a quick run (`test`).

    Data sets that a folder of data lacks are left out and named, unless the configuration asks for them by name.
    Raises `UserError`, also where none is left.
    """
    folder = cfg.options.data_dir
    if folder is not None and not folder.is_dir():  # also where the benchmark would not read it
        raise UserError(f"data_dir = {str(folder)!r} is no folder")
    records: dict[str, list[Record]] = {}
    absent: dict[str, AbsentDataError] = {}
    for dataset in select_datasets(task, cfg):
        try:
            records[dataset] = select_records(task, cfg, dataset)
        except AbsentDataError as error:
            if cfg.tasks:
                raise
            absent[dataset] = error
        if records and cfg.test:
            break
    if not records:
        raise UserError(f"{next(iter(absent.values()))}; nor has it any other data set of {task.name}")
    if absent:
        logger.warning(
            "data_dir = '%s' has no file of %s, which %s left out; %s run",
            cfg.options.data_dir, ", ".join(absent), "are" if len(absent) > 1 else "is", ", ".join(records),
        )  # fmt: skip
    return records


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
    old.setdefault("engine", "transformers")
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
    model_revision: str | None = None,
    automatic: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `run.json` holds. `records` counts by data set; a resumed run keeps the larger count of the two.

    `model_revision` is the commit of a model from the hub; `data` says the same of the benchmark's data.
    """
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
        "data": get_task(cfg.task).data_source(cfg.options),
        "model_revision": model_revision,
        "automatic": (before or {}).get("automatic") if automatic is None else automatic,
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
    """The commit of this checkout, with "-dirty" behind it if tracked files are changed; None outside git.

    None also where this is installed: an environment may lie in somebody's repository, whose commit says nothing.
    """
    if INSTALLED:
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
