"""Scores the predictions of an experiment into result.json and result_detail.json beside them."""

from __future__ import annotations

from pipeline import signals

if __name__ == "__main__":
    signals.end_at_once()  # while the rest is imported

import logging

from rich.console import Console

from pipeline.chosen import ALL, chosen_experiments, holds_predictions
from pipeline.cli import (
    EXIT_BAD_EXPERIMENT,
    EXIT_DONE,
    add_task_option,
    complain,
    make_parser,
    results_option,
    run_script,
)
from pipeline.help import tasks_help
from pipeline.score_table import say, show_scores
from pipeline.scoring import NothingPredictedError, score_experiment
from tasks import get_task
from tasks.errors import UserError

logger = logging.getLogger("eval")


EXAMPLE = "example:\n  python eval.py --task longbench --exp dpi-llama2-7b-4k-to-16k\n"


def details() -> str:
    """The end of the help."""
    return f"{EXAMPLE}\n{tasks_help()}"


def main(argv: list[str]) -> int:
    """Score what the command line asks for; returns the exit code."""
    parser = make_parser(__doc__ or "", details)
    add_task_option(parser)
    parser.add_argument("--exp", required=True, metavar="NAME", help="experiment, or all")
    arguments = parser.parse_args(argv)
    task = get_task(arguments.task)
    folders = chosen_experiments(arguments.results, task, arguments.exp, holds_predictions)
    console = Console()
    problems: list[UserError] = []
    for folder in folders:
        try:
            progress = score_experiment(folder, task)
        except UserError as error:  # one bad experiment must not keep the others from their scores
            problems.append(error)
            continue
        show_scores(folder, task, progress, console)
        console.print()
    if len(problems) < len(folders):
        where = results_option(arguments.results)
        say(console, f"next: python collect_results.py --task {task.name} --exp all{where}")
    bad = [error for error in problems if not isinstance(error, NothingPredictedError)]
    if bad and arguments.exp == ALL:
        for problem in problems:
            complain(problem, argv)
        logger.error("%d of %d experiments could not be scored", len(problems), len(folders))
        return EXIT_BAD_EXPERIMENT
    if problems:
        others = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{others}")
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)
