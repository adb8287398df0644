import logging

import pytest

from pipeline.text import PrintableFormatter, markdown_cell, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 中文", "plain é 中文"),
        ("\x1b[2Jgone\r\n", r"\x1b[2Jgone\r\n"),
        ("a\u202eb\x9bc\x00", r"a\u202eb\x9bc\x00"),
        ("lone \ud800", r"lone \ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown
    shown.encode()


def test_a_markdown_cell_shows_markup_and_keeps_names() -> None:
    assert markdown_cell("dpi_llama-2/7b") == "dpi_llama-2/7b"
    assert markdown_cell("a|b\n<img>`[x](y)*") == r"a\|b\\n&lt;img&gt;\`\[x\](y)\*"


def test_log_lines_are_printable_and_tracebacks_keep_their_lines() -> None:
    record = logging.LogRecord("n", logging.ERROR, "", 0, "%s", ("a\x1b[31m\n\tb",), None)
    assert PrintableFormatter("%(message)s").format(record) == "a\\x1b[31m\n\tb"
