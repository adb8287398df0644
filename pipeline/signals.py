"""How Ctrl-C and SIGTERM end a script: with one line and exit code 130 or 143, also while its imports run.

The scripts import this before anything else, so it imports next to nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

_ENDS = {
    signal.SIGINT: (EXIT_INTERRUPTED, "interrupted; the same command goes on from here\n"),
    signal.SIGTERM: (EXIT_TERMINATED, "terminated; the same command goes on from here\n"),
}


class Terminated(BaseException):
    """SIGTERM, which ends a run as Ctrl-C does."""


class Watch:
    """What came while signals were watched."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.received: int | None = None


_watch = Watch()


def end_at_once() -> None:
    """From here on a signal ends the process: for a script's first seconds, when nothing is in hand yet."""
    for number in _ENDS:
        _handle(number, _end)


@contextmanager
def watched() -> Iterator[Watch]:
    """Within, the first signal raises `KeyboardInterrupt` or `Terminated`; a second one ends the process.

    What is raised in the middle of an import may come out as another error, so whoever catches one asks the watch.
    """
    global _watch
    _watch = Watch()
    before = {number: signal.getsignal(number) for number in _ENDS}
    for number in _ENDS:
        _handle(number, _raise)
    try:
        yield _watch
    finally:
        _watch = Watch()  # what comes after in this process was not interrupted
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def kept() -> Iterator[None]:
    """Within, a library may set handlers of its own, also one that exits at SIGTERM; afterwards they are as before."""
    before = {number: signal.getsignal(number) for number in _ENDS}
    try:
        yield
    except SystemExit as end:
        if end.code == signal.SIGTERM:
            _raise(signal.SIGTERM, None)
        raise
    finally:
        if _watch.received is None:
            for number, handler in before.items():
                signal.signal(number, handler)


def check() -> None:
    """Raise again what a signal raised, where it came out as another error or was lost in a destructor."""
    if _watch.received is not None:
        _raise(_watch.received, None)


def end_of(number: int) -> tuple[int, str]:
    """The exit code and the line of a signal."""
    return _ENDS[signal.Signals(number)]


def _handle(number: signal.Signals, handler: object) -> None:
    """Set a handler. Where whoever started this process had the signal ignored (nohup), it stays so."""
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, handler)  # type: ignore[arg-type]


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    _watch.received = number
    for each in _ENDS:
        _handle(each, signal.SIG_DFL)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _end(number: int, frame: FrameType | None) -> NoReturn:
    code, line = end_of(number)
    os.write(2, line.encode())
    os._exit(code)
