"""The console commands of an installation: `gali.commands.<script>` runs that script's `main`."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import NoReturn

from pipeline import signals

_PREFIX = signals.__name__.partition("pipeline")[0]
"""Of our modules: "gali." where they are installed, nothing in a checkout."""


def run(script: str) -> NoReturn:
    """Run a script with the command line; exits with its code, and with 2 where a package is missing that it needs."""
    signals.end_at_once()  # while the rest is imported
    try:
        cli = importlib.import_module("pipeline.cli")
        main = importlib.import_module(f"{_PREFIX}{script}").main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(_PREFIX or "pipeline"):
            raise
        sys.stderr.write(f"error: this command needs the package {error.name!r}; pip install 'gali[eval]' brings it\n")
        sys.exit(2)
    cli.run_script(main)
    raise AssertionError("run_script exits")


def __getattr__(name: str) -> Callable[[], NoReturn]:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return functools.partial(run, name)
