"""Files that are read with one message for every fault, and written whole or not at all, through no symbolic link.

A link in a results folder that came from elsewhere could make a run overwrite what it points at; so could a pipe or a
device stop it for ever.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from tasks.errors import UserError
from tasks.reading import read_regular

# Windows knows neither; its symbolic links need rights that users do not have.
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def open_to_write(path: Path, flags: int) -> BinaryIO:
    """The file at `path`, made if it is not there, opened with flags of `os.open` such as `os.O_APPEND`.

    Raises `UserError` if it is a symbolic link or no regular file, `OSError` if it cannot be opened.
    """
    refuse_link(path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags | _NO_LINKS, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:  # it has become a link since
            refuse_link(path)
        raise
    return os.fdopen(descriptor, "ab" if flags & os.O_APPEND else "r+b")


def refuse_link(path: Path) -> None:
    """Raise `UserError` if something else than a regular file is at `path`. Nothing at all is fine."""
    if path.is_symlink():
        raise UserError(f"{str(path)!r} is a symbolic link, which is not followed; remove it")
    if path.exists() and not path.is_file():
        raise UserError(f"{str(path)!r} is no regular file; remove it")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an `OSError` from within the name of the file, which a full disk does not say."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` at the end; after an error `path` is as before."""
    temporary = path.with_name(f".{path.name}.tmp")
    refuse_link(path)
    with naming(path):
        file = open_to_write(temporary, os.O_TRUNC)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that it is either the old one or the whole new one. NaN and infinity are a `ValueError`."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is either the old one or the whole new one; see `encoded`."""
    with replacing(path) as file:
        file.write(encoded(text))


def encoded(text: str) -> bytes:
    r"""UTF-8, with a lone surrogate as `\ud800`: in JSON that is the surrogate itself, which reads back as it was."""
    return text.encode("utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `UserError` if it is unreadable or broken; NaN and infinity are no JSON."""
    data = read_regular(path)
    try:
        return json.loads(data, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and deep nesting
        raise UserError(f"{str(path)!r} is not valid JSON: {error}") from None


def _refuse(number: str) -> NoReturn:
    raise ValueError(f"{number} is no number of JSON")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)
