"""Collects scored experiments into Excel files, a Markdown table, pictures and an HTML page."""

from __future__ import annotations

from pipeline import signals

if __name__ == "__main__":
    signals.end_at_once()  # while the rest is imported

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pipeline import store
from pipeline.chosen import ALL, chosen_experiments, holds_anything, holds_predictions
from pipeline.cli import EXIT_BAD_EXPERIMENT, EXIT_DONE, add_task_option, complain, make_parser, run_script
from pipeline.help import tasks_help
from pipeline.page import write_page
from pipeline.paired import Difference, difference
from pipeline.report import in_order, read_experiments, write_collection
from pipeline.score_table import differences_table
from pipeline.text import printable
from tasks import get_task
from tasks.base import Task
from tasks.errors import UserError

logger = logging.getLogger("collect_results")


EXAMPLE = "example:\n  python collect_results.py --task longbench --exp all\n"


def details() -> str:
    """The end of the help."""
    return f"{EXAMPLE}\n{tasks_help()}"


def main(argv: list[str]) -> int:
    """Collect what the command line asks for; returns the exit code."""
    parser = make_parser(__doc__ or "", details)
    add_task_option(parser)
    parser.add_argument("--exp", default="all", metavar="NAME",
                        help="experiment, whose folder gets the files; or all (default)")  # fmt: skip
    parser.add_argument("--against", metavar="NAME",
                        help="experiment that others are compared with, record by record")  # fmt: skip
    arguments = parser.parse_args(argv)
    task = get_task(arguments.task)
    folders = chosen_experiments(arguments.results, task, arguments.exp, holds_anything)
    out = arguments.results / task.folder
    if arguments.exp != ALL:
        [out] = folders
        if not store.belongs_to(out, task):
            raise UserError(f"{str(out)!r} is no experiment of task {task.name!r}; pred.py writes them")
    baseline = _baseline(arguments.results, task, arguments.against)
    experiments, problems = read_experiments(folders, task)
    if problems and len(folders) == 1:
        raise problems[0]
    for problem in problems:
        complain(problem, argv)
    console = Console(soft_wrap=True)
    if experiments:
        written = write_collection(experiments, task, out)
        differences = _differences(folders, baseline, task, problems, argv)
        page = out / f"{task.prefix}.html"
        read = {experiment.name for experiment in experiments}
        sound = [folder for folder in folders if printable(folder.name) in read]
        write_page(page, in_order(experiments), sound, task, against=arguments.against, differences=differences)
        for path in (*written, page):
            console.print(printable(str(path)), highlight=False, markup=False)
        if differences:
            console.print(f"\ndifferences to {printable(arguments.against)}, paired", highlight=False, markup=False)
            console.print(differences_table(differences, task))
    if problems:
        logger.error("%d of %d experiments could not be collected", len(problems), len(folders))
        return EXIT_BAD_EXPERIMENT
    return EXIT_DONE


def _baseline(results: Path, task: Task, name: str | None) -> Path | None:
    """The folder of the experiment that others are compared with."""
    if name == ALL:
        raise UserError("--against names one experiment, not all")
    return None if name is None else chosen_experiments(results, task, name, holds_predictions)[0]


def _differences(
    folders: Sequence[Path], baseline: Path | None, task: Task, problems: list[UserError], argv: Sequence[str]
) -> list[Difference]:
    """The differences of experiments to the baseline. One that has none must not keep the others from theirs."""
    found: list[Difference] = []
    for folder in folders if baseline is not None else ():
        if baseline is None or folder == baseline:
            continue
        try:
            found.append(difference(folder, baseline, task))
        except UserError as error:
            complain(error, argv)
            problems.append(error)
    return found


if __name__ == "__main__":
    run_script(main)
