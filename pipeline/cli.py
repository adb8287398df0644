"""What the three scripts share: options, logging, and how a user's mistake ends.

Exit codes: 0 done, 2 a mistake of the user (one line on stderr, nothing overwritten), 3 some records failed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tqdm.contrib.logging import logging_redirect_tqdm
from typing_extensions import override

from tasks import task_names
from tasks.errors import UserError

EXIT_DONE = 0
EXIT_USER_ERROR = 2
EXIT_FAILED_RECORDS = 3


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    @override
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def make_parser(description: str) -> Parser:
    """A parser with the options that every script has."""
    parser = Parser(description=description, allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="results folder")
    parser.add_argument("--verbose", action="store_true", help="log details, with tracebacks of failed records")
    return parser


def add_task_option(parser: argparse.ArgumentParser) -> None:
    """The option `--task`, whose help lists the benchmarks."""
    parser.add_argument("--task", required=True, help=", ".join(task_names()))


def run_script(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a script's main function with the command line and exit with its code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "urllib3", "filelock", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if "--verbose" in sys.argv:
        logging.getLogger().setLevel(logging.DEBUG)
    try:
        with logging_redirect_tqdm():
            code = main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        code = 130
    sys.exit(code)
