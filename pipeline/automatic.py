"""What is "auto" in a configuration becomes numbers before anything else sees it.

An experiment that was begun goes on with the numbers of its run record. For another, the model's effective window is
measured (`models.DPI.calibration`), or comes from the user's cache folder where it was measured before.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.checks import Start, check_request, check_start
from pipeline.config import ExperimentConfig
from pipeline.distributed import Workers
from pipeline.model_loader import measured_window
from tasks import get_task

logger = logging.getLogger(__name__)

WINDOW = "ori_max_position_embeddings"


def asked_of(cfg: ExperimentConfig) -> list[str]:
    """The keys that are "auto", such as "params.local_window"."""
    window = [WINDOW] if cfg.options.ori_max_position_embeddings == "auto" else []
    return [*window, *(f"params.{name}" for name, value in cfg.params.items() if value == "auto")]


def settle(
    cfg: ExperimentConfig,
    results: Path,
    workers: Workers,
    *,
    overwrite: bool = False,
    measure: bool = True,
    release: Callable[[], None] = lambda: None,
) -> tuple[ExperimentConfig, dict[str, Any] | None]:
    """The configuration with numbers, and what the run record says of them; None where nothing is "auto".

    All processes get the numbers of the first. measure: false takes the model's own window, which is an upper bound,
    in place of a measurement. release: called before the model is loaded to be measured, so that no other is beside it.
    Raises `UserError` as `check_start` does, also for numbers that do not fit the others.
    """
    asked = asked_of(cfg)
    if not asked:
        return cfg, None
    check_request(cfg)
    numbers = workers.from_first(lambda: _numbers(cfg, asked, results, workers, overwrite, measure, release))
    found = {key: numbers[key] for key in asked}
    if workers.is_main:
        logger.info("auto: %s", ", ".join(f"{key} = {value}" for key, value in found.items()))
    note = {"found": found, "calibration": numbers["calibration"]}
    return _with_numbers(cfg, numbers), note


def _with_numbers(cfg: ExperimentConfig, numbers: Mapping[str, Any]) -> ExperimentConfig:
    options = cfg.options.model_copy(update={WINDOW: numbers[WINDOW]}) if WINDOW in numbers else cfg.options
    params = {name: numbers.get(f"params.{name}", value) for name, value in cfg.params.items()}
    return cfg.model_copy(update={"options": options, "params": params})


def begun_with(cfg: ExperimentConfig, results: Path) -> ExperimentConfig:
    """The configuration with the numbers that its experiment began with; as it is where there are none."""
    asked = asked_of(cfg)
    numbers = _of_run(cfg, asked, results) if asked else None
    return cfg if numbers is None else _with_numbers(cfg, numbers)


def _numbers(
    cfg: ExperimentConfig,
    asked: list[str],
    results: Path,
    workers: Workers,
    overwrite: bool,
    measure: bool,
    release: Callable[[], None],
) -> dict[str, Any]:
    """A number for each key, and the calibration that they come from, where there is one."""
    if not overwrite and (before := _of_run(cfg, asked, results)) is not None:
        return before
    provisional, start = _within_own_window(cfg, workers)
    window, calibration = start.window, None
    if WINDOW in asked and measure:
        release()
        calibration = measured_window(provisional, workers.device(), start.window)
        window = calibration["window"]
        logger.info("window %d of %d tokens: %s", window, start.window, calibration["reason"])
        gc.collect()  # the stock model, before another comes
    return {**_with_window(cfg, asked, window), "calibration": calibration}


def _of_run(cfg: ExperimentConfig, asked: list[str], results: Path) -> dict[str, Any] | None:
    """The numbers that an experiment began with; None where it has not begun, or was asked for other ones."""
    folder = store.experiment_folder(results, get_task(cfg.task), cfg.exp_name)
    run = store.read_run(folder) if folder.is_dir() and store.has_predictions(folder) else None
    if run is None or set((run["automatic"] or {}).get("found", ())) != set(asked):
        return None
    numbers = {key: _value(run["config"], key) for key in asked}
    if not all(type(value) is int and value > 0 for value in numbers.values()):
        return None
    return {**numbers, "calibration": run["automatic"].get("calibration")}


def _value(config: Mapping[str, Any], key: str) -> Any:
    """A key of a flat configuration, or a parameter of its method."""
    table, _, name = key.rpartition(".")
    return (config[table] if table else config).get(name)


def _within_own_window(cfg: ExperimentConfig, workers: Workers) -> tuple[ExperimentConfig, Start]:
    """The configuration as if W were the model's own, and that nothing speaks against it."""
    window = None if cfg.options.ori_max_position_embeddings == "auto" else cfg.options.ori_max_position_embeddings
    provisional = cfg.model_copy(update={"options": cfg.options.model_copy(update={WINDOW: window})})
    return provisional, check_start(provisional, workers.device(), upper_bound=window is None)


def _with_window(cfg: ExperimentConfig, asked: list[str], window: int) -> dict[str, Any]:
    from models.DPI.methods import resolve_params

    params = resolve_params(cfg.method, cfg.params, window)
    return {key: window if key == WINDOW else params[key.removeprefix("params.")] for key in asked}
