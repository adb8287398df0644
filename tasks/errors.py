"""The exceptions that the command line turns into one line and exit code 2."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any


class UserError(Exception):
    """A mistake in what the user gave: a configuration, a folder, a file. The message is one line that says
    what is wrong and what to do about it."""


@contextlib.contextmanager
def said_of(source: str) -> Iterator[None]:
    """Inside the block a `UserError` begins with its source, such as the configuration that it came up in."""
    try:
        yield
    except UserError as error:
        if not source or str(error).startswith(f"{source}: "):
            raise
        raise UserError(f"{source}: {error}") from error.__cause__


class BadFieldError(UserError):
    """A field of a prediction line that cannot be scored. Who read the line from a file adds where it stands."""

    def __init__(self, line: Mapping[str, Any], why: str) -> None:
        """line: the one that is wrong. why: names the field."""
        super().__init__(why)
        self.line = line


class AbsentDataError(UserError):
    """A folder of data lacks one data set. Where nobody asked for that one by name, the others can do without it."""
