"""Runs experiments: predictions of a model with a method on a benchmark, resumable, into the results folder."""

from __future__ import annotations

from pipeline import signals

if __name__ == "__main__":
    signals.end_at_once()  # while the rest is imported

import argparse
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pipeline import store, sweep
from pipeline.cli import EXIT_DONE, EXIT_FAILED_RECORDS, make_parser, results_option, run_script
from pipeline.config import ExperimentConfig, apply_overrides, build_config, read_toml, source_of
from pipeline.help import keys_help, methods_help, tasks_help
from tasks import get_task
from tasks.errors import UserError, said_of

if TYPE_CHECKING:
    from pipeline.runner import Outcome

logger = logging.getLogger("pred")


def read_experiments(path: Path, overrides: list[str], only: list[str]) -> tuple[list[ExperimentConfig], bool]:
    """The experiments that a file and the command line ask for, and whether the file is a sweep."""
    content = read_toml(path)
    if sweep.is_sweep(content):
        given = [override.partition("=")[0].strip() for override in overrides]
        return sweep.select(sweep.expand(apply_overrides(content, overrides), str(path), given), only), True
    found = [build_config(apply_overrides(content, overrides), str(path))]
    return sweep.select(found, only), False


EXAMPLE = """example:
  python pred.py --cfg expcfg/quickstart/needle.toml --dry-run
  python pred.py --cfg expcfg/quickstart/needle.toml --set times=2
"""


def details() -> str:
    """The end of the help."""
    return f"{EXAMPLE}\n{methods_help()}\n\n{tasks_help()}\n\n{keys_help()}"


def _is_no_reminder(record: logging.LogRecord) -> bool:
    """False for transformers' reminder that a prompt is longer than the model's window: here it is meant to be."""
    return "exceeded the model's predefined maximum length" not in record.getMessage()


def main(argv: list[str]) -> int:
    """Run what the command line asks for; returns the exit code."""
    logging.getLogger("transformers.generation.stopping_criteria").addFilter(_is_no_reminder)
    parser = make_parser(__doc__ or "", details)
    parser.add_argument("--cfg", type=Path, required=True, metavar="FILE", help="configuration, or sweep (TOML)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help="override a key, such as params.group_size=3; may be repeated")  # fmt: skip
    parser.add_argument("--only", action="append", default=[], metavar="NAME",
                        help="of a sweep, run NAME or TASK/NAME (wildcards allowed); may be repeated")  # fmt: skip
    parser.add_argument("--tasks", metavar="A,B", help="data sets to run")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N records per data set")
    parser.add_argument("--overwrite", action="store_true", help="begin anew: remove what is there of the experiment")
    parser.add_argument("--launcher", choices=["ray"],
                        help="ray: a worker on each GPU of this machine, or of the cluster at RAY_ADDRESS")  # fmt: skip
    parser.add_argument("--workers", type=int, metavar="N", help="how many, for --launcher ray")
    parser.add_argument("--dry-run", action="store_true",
                        help="check all that a run would; print records, memory and time; write nothing")  # fmt: skip
    arguments = parser.parse_args(argv)

    options: dict[str, Any] = {"limit": arguments.limit}
    overrides = arguments.overrides + [f"{key}={value}" for key, value in options.items() if value is not None]
    if arguments.tasks is not None:
        names = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
        overrides.append(f"tasks={names!r}")
    experiments, is_sweep = read_experiments(arguments.cfg, overrides, arguments.only)
    elsewhere = False
    if arguments.launcher == "ray":
        from pipeline.ray_pool import check_launcher, cluster_address

        check_launcher(experiments, arguments.cfg, arguments.workers)
        elsewhere = cluster_address() is not None
    elif arguments.workers is not None:
        raise UserError(f"--workers {arguments.workers} is for --launcher ray; torchrun and accelerate have their own")
    if arguments.dry_run:
        from pipeline.dry_run import dry_run, list_experiments

        console = Console()
        show = list_experiments if is_sweep and not arguments.only else dry_run
        show(experiments, arguments.results, console, arguments.cfg, overwrite=arguments.overwrite, elsewhere=elsewhere)
        return EXIT_DONE
    return (predict if arguments.launcher is None else predict_by_workers)(experiments, arguments)


def predict_by_workers(experiments: list[ExperimentConfig], arguments: argparse.Namespace) -> int:
    """Put the experiments to workers of Ray; returns the exit code."""
    from pipeline.dispatch import Dispatcher
    from pipeline.ray_pool import RayPool

    unfinished = 0
    with RayPool(arguments.workers, experiments) as pool:
        dispatcher = Dispatcher(pool, arguments.results, overwrite=arguments.overwrite)
        sources = [(cfg, source_of(cfg, experiments, arguments.cfg)) for cfg in experiments]
        for job, outcomes in dispatcher.run(sources):
            unfinished += told(job.cfg, outcomes, arguments.results)
    tell_next(experiments, arguments.results)
    return exit_code(unfinished)


def predict(experiments: list[ExperimentConfig], arguments: argparse.Namespace) -> int:
    """Run the experiments one after another; returns the exit code."""
    from pipeline.automatic import settle
    from pipeline.checks import check_requests
    from pipeline.distributed import Workers
    from pipeline.experiment import run_experiment, with_model_revision
    from pipeline.model_files import weights_digests
    from pipeline.model_loader import EngineLoader

    results: Path = arguments.results
    tensor_parallel = check_requests(experiments, arguments.cfg)
    unfinished = 0
    with Workers(tensor_parallel=tensor_parallel) as workers, EngineLoader(workers) as load_engine:
        digests: dict[str, dict[str, str] | None] = {}
        for number, cfg in enumerate(experiments, start=1):
            place = f"{number}/{len(experiments)} " if len(experiments) > 1 else ""
            if place and workers.is_main:
                logger.info("experiment %d of %d: %s (%s)", number, len(experiments), cfg.exp_name, cfg.task)
            with said_of(source_of(cfg, experiments, arguments.cfg)):
                cfg = with_model_revision(cfg, results, overwrite=arguments.overwrite)
                cfg, automatic = settle(
                    cfg, results, workers, overwrite=arguments.overwrite, release=load_engine.release
                )
                start = load_engine.check(cfg)
                workers.agree("revisions of the model", start.revision, "set model_revision to a commit")
                if workers.processes > 1 and cfg.model not in digests:
                    digests[cfg.model] = weights_digests(cfg.model)  # a folder has no commit
                    workers.agree("files of the model", digests[cfg.model], "copy the model anew")
                outcomes = run_experiment(
                    cfg, results, workers, load_engine,
                    window=start.window, model_revision=start.revision, automatic=automatic,
                    overwrite=arguments.overwrite, title=f"{place}{cfg.task}",
                )  # fmt: skip
            unfinished += told(cfg, outcomes, results, aloud=workers.is_main)
        if workers.is_main:
            tell_next(experiments, results)
    return exit_code(unfinished)


def told(cfg: ExperimentConfig, outcomes: Mapping[str, Outcome], results: Path, *, aloud: bool = True) -> int:
    """Say what has become of an experiment, where it is to be said aloud; returns how many records are unfinished."""
    failed = sum(outcome.failed for outcome in outcomes.values())
    if aloud:
        total = sum(outcome.records for outcome in outcomes.values())
        folder = store.experiment_folder(results, get_task(cfg.task), cfg.exp_name)
        logger.info("%s (%s): %d records, %d failed; in %s", cfg.exp_name, cfg.task, total, failed, folder)
    return failed + sum(outcome.missing for outcome in outcomes.values())


def tell_next(experiments: list[ExperimentConfig], results: Path) -> None:
    """Say which commands score the experiments: one for each benchmark."""
    for task in dict.fromkeys(cfg.task for cfg in experiments):
        names = {cfg.exp_name for cfg in experiments if cfg.task == task}
        name = shlex.quote(names.pop()) if len(names) == 1 else "all"
        logger.info("next: python eval.py --task %s --exp %s%s", task, name, results_option(results))


def exit_code(unfinished: int) -> int:
    """The exit code of a run. unfinished: records without a prediction, which are spoken of."""
    if unfinished:
        logger.error("%d records have no prediction; the same command tries only those", unfinished)
        return EXIT_FAILED_RECORDS
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)
