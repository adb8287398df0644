"""Scores the predictions of an experiment into result.json and result_detail.json beside them."""

from __future__ import annotations

from pipeline import signals

if __name__ == "__main__":
    signals.end_at_once()  # while the rest is imported

import json
import logging
from typing import Any

from rich.console import Console

from pipeline import store
from pipeline.cli import EXIT_BAD_EXPERIMENT, EXIT_DONE, add_task_option, complain, make_parser, run_script
from pipeline.scoring import NothingPredictedError, score_experiment
from pipeline.text import printable
from tasks import get_task
from tasks.errors import UserError

logger = logging.getLogger("eval")


def main(argv: list[str]) -> int:
    """Score what the command line asks for; returns the exit code."""
    parser = make_parser(__doc__ or "")
    add_task_option(parser)
    parser.add_argument("--exp", required=True, metavar="NAME", help="experiment, or all")
    arguments = parser.parse_args(argv)
    task = get_task(arguments.task)
    if arguments.exp == "all":
        folders = store.list_experiments(arguments.results, task)
    else:
        folders = [store.experiment_folder(arguments.results, task, arguments.exp)]
    console = Console(soft_wrap=True)
    problems: list[UserError] = []
    for folder in folders:
        try:
            progress = score_experiment(folder, task)
        except UserError as error:  # one bad experiment must not keep the others from their scores
            problems.append(error)
            continue
        note = f" ({progress.describe()})" if progress.describe() else ""
        console.print(printable(f"{folder / 'result.json'}{note}"), highlight=False, markup=False)
        console.print(printable(shorten(store.read_json(folder / "result.json"))), highlight=False, markup=False)
    bad = [error for error in problems if not isinstance(error, NothingPredictedError)]
    if bad and arguments.exp == "all":
        for problem in problems:
            complain(problem, argv)
        logger.error("%d of %d experiments could not be scored", len(problems), len(folders))
        return EXIT_BAD_EXPERIMENT
    if problems:
        others = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{others}")
    return EXIT_DONE


def shorten(result: Any) -> str:
    """A result for the terminal: its beginning, if it is long."""
    text = json.dumps(result, ensure_ascii=False, allow_nan=False)
    return text if len(text) <= 600 else f"{text[:600]} ..."


if __name__ == "__main__":
    run_script(main)
