"""Regular files, whole or line by line, within bounds: no pipe or device stops a run for ever or fills its memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from tasks.errors import UserError

MOST_BYTES = 1 << 30
"""Of a file that is read whole: far more than any prediction file or book."""
MOST_LINE_BYTES = 1 << 26
"""Of a line of a data file: more text than any model reads."""


def read_regular(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most that many bytes. Raises `UserError`, which names the file."""
    try:
        with open_regular(path) as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if len(data) > most:
        raise UserError(f"{str(path)!r} has more than {most:,} bytes, the most that is read of such a file")
    return data


def read_text(path: Path) -> str:
    """The text of a regular file; what is no UTF-8 in it is replaced. Raises `UserError`."""
    return read_regular(path).decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened to read. Raises `UserError` for a pipe or a device, `OSError` if it cannot be opened."""
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{str(path)!r} is no regular file; give a file or a copy of its content")
    return file


def lines_of(file: IO[bytes], source: str, most: int = MOST_LINE_BYTES) -> Iterator[bytes]:
    """The lines of a file, one after another. Raises `UserError`, with source and number, for one that is too long."""
    number = 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) > most:
            raise UserError(f"{source!r} line {number} has more than {most:,} bytes; a record is one line")
        yield line


# To open a pipe waits for whoever writes to it, for ever if there is nobody. Windows has no such flag.
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | _NO_WAIT)
