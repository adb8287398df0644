"""Text of files, made harmless where people read it: on the terminal, in logs and in Markdown."""

from __future__ import annotations

import logging
import unicodedata

from rich.table import Table
from typing_extensions import override

# Control characters, format characters that reorder a line (bidirectional text), lone surrogates.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs"})


def printable(text: str, keep: str = "") -> str:
    """The text with control characters and lone surrogates as Python writes them, such as `\\x1b`, but for `keep`."""
    return "".join(
        char
        if char in keep or unicodedata.category(char) not in _UNPRINTABLE
        else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def markdown_cell(text: str) -> str:
    """The text as a cell of a Markdown table that shows it as it is."""
    escaped = "".join(f"\\{char}" if char in "\\`*[]|" else char for char in printable(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def plain_table(first: str, *others: str) -> Table:
    """A table without lines, narrow enough for 80 columns: the first column is text, the others are numbers."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


class PrintableFormatter(logging.Formatter):
    """Log lines with what comes from files made printable; tracebacks keep their lines."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")
