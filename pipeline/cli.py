"""What the three scripts share: options, logging, and how a user's mistake ends.

Exit codes: 0 done, 2 a mistake of the user or a fault of the disk (one line on stderr, nothing
overwritten), 3 some records failed or some experiments are bad, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import shlex
import signal
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from tqdm.contrib.logging import logging_redirect_tqdm
from typing_extensions import override

from pipeline import signals
from pipeline.files import encoded, open_to_write
from pipeline.text import PrintableFormatter, printable
from tasks import task_names
from tasks.errors import UserError

EXIT_DONE = 0
EXIT_USER_ERROR = 2
EXIT_FAILED_RECORDS = 3
EXIT_BAD_EXPERIMENT = 3

DEFAULT_RESULTS = Path("results")
LOG_FILE = "errors.log"
"""In the results folder: tracebacks of what ended a run with one line."""


def results_option(results: Path) -> str:
    """What a command needs to read the same results folder, with a blank before it; nothing for the default."""
    return "" if results == DEFAULT_RESULTS else f" --results {shlex.quote(str(results))}"


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, and whose help ends with what is looked up only then."""

    details: Callable[[], str] | None = None
    """What stands at the end of the help."""

    @override
    def format_help(self) -> str:
        self.epilog = self.details() if self.details is not None else None
        return super().format_help()

    @override
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def make_parser(description: str, details: Callable[[], str] | None = None) -> Parser:
    """A parser with the options that every script has. details: the end of its help."""
    parser = Parser(
        description=textwrap.fill(description, 78),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.details = details
    parser.add_argument("--results", type=Path, default=DEFAULT_RESULTS, metavar="DIR", help="results folder")
    parser.add_argument("--verbose", action="store_true", help="log details, with tracebacks of failed records")
    return parser


def add_task_option(parser: argparse.ArgumentParser) -> None:
    """The option `--task`, whose help lists the benchmarks."""
    parser.add_argument("--task", required=True, help=", ".join(task_names()))


def run_script(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a script's main function with the command line and exit with its code."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("httpx", "urllib3", "filelock", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if "--verbose" in sys.argv:
        logging.getLogger().setLevel(logging.DEBUG)
    else:
        leave_out_notices()
    with signals.watched() as watch:
        try:
            with logging_redirect_tqdm():
                code = main(sys.argv[1:])
        except SystemExit:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | signals.Terminated) or watch.received is not None:
                code, line = signals.end_of(watch.received or signal.SIGINT)
                sys.stderr.write(line)
            else:
                code = _code_of(error)
    sys.exit(code)


NOTICE = "`past_key_values`/`cache_params` are deprecated"
"""What transformers 5.24 tells programmers, itself among them."""


def leave_out_notices() -> None:
    """Without `--verbose`, leave out libraries' notices that mean nothing to who runs a script.

    They are named one by one: any other warning may be about a result.
    """
    logging.getLogger("transformers.utils.generic").addFilter(_is_no_notice)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)


def _is_no_notice(record: logging.LogRecord) -> bool:
    return NOTICE not in record.getMessage()


def _code_of(error: BaseException) -> int:
    """Say what ended a run in one line; returns the exit code. What may be a bug is raised again."""
    if isinstance(error, UserError):
        complain(error, sys.argv[1:])
    elif isinstance(error, OSError):  # a full disk, a folder that is gone or may not be written
        complain(UserError(_fault(error)), sys.argv[1:], cause=error)
    else:
        raise error
    return EXIT_USER_ERROR


def complain(error: UserError, argv: Sequence[str], cause: BaseException | None = None) -> None:
    """Write a user's mistake as one line. What caused it, where it has a cause, goes to a log that the line names."""
    cause = cause or error.__cause__
    log = None if cause is None else _log_traceback(cause, argv)
    where = f" (traceback in {str(log)!r})" if log is not None else ""
    sys.stderr.write(f"error: {printable(' '.join(str(error).split()))}{printable(where)}\n")


def _fault(error: OSError) -> str:
    files = [repr(str(name)) for name in (error.filename, error.filename2) if name is not None]
    return f"{error.strerror or str(error) or type(error).__name__}{': ' if files else ''}{' -> '.join(files)}"


def _log_traceback(cause: BaseException, argv: Sequence[str]) -> Path | None:
    """Append a traceback to the log in the results folder; None where that cannot be."""
    try:
        path = make_parser("").parse_known_args(argv)[0].results / LOG_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = "".join(traceback.format_exception(cause))
        with open_to_write(path, os.O_APPEND) as file:
            file.write(encoded(f"{now} {shlex.join(argv)}\n{text}\n"))
    except (OSError, UserError):
        return None
    return Path(path)
