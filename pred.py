"""Runs experiments: predictions of a model with a method on a benchmark, resumable, into the results folder."""

from __future__ import annotations

from pipeline import signals

if __name__ == "__main__":
    signals.end_at_once()  # while the rest is imported

import argparse
import logging
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import sweep
from pipeline.cli import EXIT_DONE, EXIT_FAILED_RECORDS, make_parser, run_script
from pipeline.config import ExperimentConfig, apply_overrides, build_config, read_toml
from pipeline.text import printable
from tasks.errors import UserError

logger = logging.getLogger("pred")


def read_experiments(path: Path, overrides: list[str], only: list[str]) -> tuple[list[ExperimentConfig], bool]:
    """The experiments that a file and the command line ask for, and whether the file is a sweep."""
    content = read_toml(path)
    if sweep.is_sweep(content):
        return sweep.select(sweep.expand(apply_overrides(content, overrides), str(path)), only), True
    found = [build_config(apply_overrides(content, overrides), str(path))]
    return sweep.select(found, only), False


def list_experiments(experiments: list[ExperimentConfig], console: Console) -> None:
    """Print the experiments of a sweep."""
    table = Table("experiment", "task", "model", "method", "window", "target", "params")
    for cfg in experiments:
        params = ", ".join(f"{key}={value}" for key, value in cfg.params.items())
        window = str(cfg.options.ori_max_position_embeddings or "model's")
        cells = (cfg.exp_name, cfg.task, cfg.model, cfg.method, window, str(cfg.options.max_pe), params)
        table.add_row(*(escape(printable(cell)) for cell in cells))
    console.print(table)
    console.print(f"{len(experiments)} experiments")


def main(argv: list[str]) -> int:
    """Run what the command line asks for; returns the exit code."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--cfg", type=Path, required=True, metavar="FILE", help="configuration, or sweep (TOML)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help="override a key, such as params.group_size=3; may be repeated")  # fmt: skip
    parser.add_argument("--only", action="append", default=[], metavar="NAME",
                        help="of a sweep, run NAME or TASK/NAME (wildcards allowed); may be repeated")  # fmt: skip
    parser.add_argument("--tasks", metavar="A,B", help="data sets to run")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N records per data set")
    parser.add_argument("--overwrite", action="store_true", help="begin anew: remove what is there of the experiment")
    parser.add_argument("--dry-run", action="store_true", help="print what would run; load no weights, write nothing")
    arguments = parser.parse_args(argv)

    options: dict[str, Any] = {"limit": arguments.limit}
    overrides = arguments.overrides + [f"{key}={value}" for key, value in options.items() if value is not None]
    if arguments.tasks is not None:
        names = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
        overrides.append(f"tasks={names!r}")
    experiments, is_sweep = read_experiments(arguments.cfg, overrides, arguments.only)
    console = Console(width=None if Console().is_terminal else 160)
    if is_sweep and arguments.dry_run and not arguments.only:
        list_experiments(experiments, console)
        return EXIT_DONE
    return dry_run(experiments, console) if arguments.dry_run else predict(experiments, arguments)


def dry_run(experiments: list[ExperimentConfig], console: Console) -> int:
    """Print what each experiment would do; returns the exit code."""
    from pipeline.dry_run import show
    from pipeline.model_loader import check_method, resolve_window

    for cfg in experiments:
        check_method(cfg, None)
        window = resolve_window(cfg)
        check_method(cfg, window)
        show(cfg, window, console)
    return EXIT_DONE


def predict(experiments: list[ExperimentConfig], arguments: argparse.Namespace) -> int:
    """Run the experiments one after another; returns the exit code."""
    from pipeline.distributed import Workers
    from pipeline.experiment import run_experiment
    from pipeline.model_loader import EngineLoader, check_method, resolve_window

    tensor_parallel = {cfg.tp_plan is not None for cfg in experiments}
    if len(tensor_parallel) > 1:
        raise UserError("tp_plan must be given for all experiments of a run or for none")
    for cfg in experiments:
        check_method(cfg, None)
    unfinished = 0
    with Workers(tensor_parallel=tensor_parallel == {True}) as workers:
        load_engine = EngineLoader(workers)
        for cfg in experiments:
            window = resolve_window(cfg)
            check_method(cfg, window)
            outcomes = run_experiment(
                cfg, arguments.results, workers, load_engine, window=window, overwrite=arguments.overwrite
            )
            failed = sum(outcome.failed for outcome in outcomes.values())
            unfinished += failed + sum(outcome.missing for outcome in outcomes.values())
            if workers.is_main:
                total = sum(outcome.records for outcome in outcomes.values())
                logger.info("%s (%s): %d records, %d failed", cfg.exp_name, cfg.task, total, failed)
    if unfinished:
        logger.error("%d records have no prediction; the same command tries only those", unfinished)
        return EXIT_FAILED_RECORDS
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)
