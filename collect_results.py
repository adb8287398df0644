"""Collects scored experiments into Excel files, a Markdown table and pictures."""

from __future__ import annotations

from pipeline import signals

if __name__ == "__main__":
    signals.end_at_once()  # while the rest is imported

import logging

from rich.console import Console

from pipeline import store
from pipeline.chosen import ALL, chosen_experiments, holds_anything
from pipeline.cli import EXIT_BAD_EXPERIMENT, EXIT_DONE, add_task_option, complain, make_parser, run_script
from pipeline.help import tasks_help
from pipeline.report import read_experiments, write_collection
from pipeline.text import printable
from tasks import get_task
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
    arguments = parser.parse_args(argv)
    task = get_task(arguments.task)
    folders = chosen_experiments(arguments.results, task, arguments.exp, holds_anything)
    out = arguments.results / task.folder
    if arguments.exp != ALL:
        [out] = folders
        if not store.belongs_to(out, task):
            raise UserError(f"{str(out)!r} is no experiment of task {task.name!r}; pred.py writes them")
    experiments, problems = read_experiments(folders, task)
    if problems and len(folders) == 1:
        raise problems[0]
    for problem in problems:
        complain(problem, argv)
    console = Console(soft_wrap=True)
    for path in write_collection(experiments, task, out) if experiments else ():
        console.print(printable(str(path)), highlight=False, markup=False)
    if problems:
        logger.error("%d of %d experiments could not be collected", len(problems), len(folders))
        return EXIT_BAD_EXPERIMENT
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)
