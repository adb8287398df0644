"""The recorded chat, and the commands that its page names."""

import re
import shlex

from chat.terminal import COMMANDS, parser
from models.DPI.methods import METHODS
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
RECORDING = PAGE.split("```text\n")[1].split("```")[0]
KNOWN = {key.split()[0] for key in COMMANDS}


def typed() -> list[str]:
    return re.findall(r"^> (.*)$", RECORDING, re.MULTILINE)


def test_the_recorded_command_line_is_one() -> None:
    name, *arguments = shlex.split(RECORDING.splitlines()[0].removeprefix("$ "))
    assert name == "gali-chat"
    found = parser().parse_args(arguments)
    assert f"{found.model} with GALI, W {found.window:,}, target {8 * found.window:,}; /help" in RECORDING


def test_what_is_typed_there_exists() -> None:
    commands = [line.split() for line in typed() if line.startswith("/")]
    assert {words[0] for words in commands} == {"/load", "/method", "/save", "/quit"} <= KNOWN
    [method] = [words[1] for words in commands if words[0] == "/method"]
    assert f"{METHODS[method].label}: " in RECORDING


def test_it_crosses_the_window_and_keeps_the_cache() -> None:
    totals = [int(number.replace(",", "")) for number in re.findall(r"^([\d,]+) tokens \(W", RECORDING, re.MULTILINE)]
    assert len(totals) == len([line for line in typed() if not line.startswith("/")])
    assert totals == sorted(totals)
    assert totals[0] < 1024 < totals[1]
    held = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) in\s+the cache", RECORDING)]
    assert held == [total - 1 for total in totals[: len(held)]], "all but the last token, which was not fed"


def test_the_table_of_commands_is_the_chats() -> None:
    table = dict(re.findall(r"^\| `(/[^`]*)` \| (.*) \|$", PAGE, re.MULTILINE))
    assert table == COMMANDS | {"/help": "these"}
