"""The chat: turns over the window, what it keeps of them, commands, and how Ctrl-C and Ctrl-D end things."""

import contextlib
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from models.DPI import build_method, install
from models.DPI.methods import METHODS
from pipeline.prefixes import KeptCache
from tasks.errors import UserError
from tests.conftest import ROOT
from tests.pipeline.small import tiny_model, word_tokenizer
from tools import chat as chat_module
from tools.chat import Chat, largest_distance, main

WORDS = "The grass is green . The sky is blue . "


def made(method: str = "dpi", target: int = 512, new: int = 6, **params: Any) -> tuple[Chat, io.StringIO]:
    out = io.StringIO()
    model = install(tiny_model(), build_method(method, params or METHODS[method].params_for(64, target)), 64)
    console = Console(file=out, soft_wrap=True)
    return Chat(model, word_tokenizer(), 64, target, max_new_tokens=new, seed=0, console=console), out


def said(out: io.StringIO) -> str:
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    return text


def answers(chat: Chat) -> list[str]:
    return [turn["content"] for turn in chat._turns[1::2]]


def test_turns_over_the_window_keep_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """From within the window of 64 to beyond it: the answers are those of a chat that reads all anew."""
    chat, out = made()
    plain, _ = made()
    monkeypatch.setattr(plain, "_kept", Forgetful())
    for turn in range(5):
        for each in (chat, plain):
            each.say(WORDS * (2 + turn))
        if turn:
            assert " in the cache; " in said(out)
    assert answers(chat) == answers(plain)
    assert len(answers(chat)) == 5


class Forgetful(KeptCache):
    """Keeps nothing."""

    def keep(self, *args: Any) -> None:
        self.drop()


def test_methods_that_are_not_causal_read_anew_and_say_so() -> None:
    chat, out = made("repro_chunkllama")
    chat.say(WORDS * 8)
    chat.say(WORDS)
    text = said(out)
    assert "not causal: the conversation was read anew" in text
    assert "in the cache" not in text


def test_another_method_drops_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, out = made()
    chat.say(WORDS * 8)
    assert chat.command("/method repro_yarn factor=8.0")
    chat.say(WORDS)
    assert "in the cache" not in said(out)
    assert chat.method == build_method("repro_yarn", {"factor": 8.0})
    assert chat.command("/method repro_se")
    assert chat.method == build_method("repro_se", METHODS["repro_se"].params_for(64, 512))
    with pytest.raises(UserError, match="reaches 128 tokens"):
        chat.command("/method repro_yarn factor=2.0")
    assert chat.method.name == "repro_se"


def test_a_text_stands_before_the_next_message_alone(tmp_path: Path) -> None:
    path = tmp_path / "a b.txt"
    path.write_text(WORDS * 9)
    chat, out = made()
    chat.command(f"/load {path}")
    assert "loaded 90 tokens" in said(out)
    chat.say("The sky")
    chat.say("The grass")
    assert chat._turns[0]["content"] == f"{WORDS * 9}\n\nThe sky"
    assert chat._turns[2]["content"] == "The grass"
    saved = tmp_path / "c.json"
    chat.command(f"/save {saved}")
    assert json.loads(saved.read_text())["turns"] == chat._turns
    for line, words in [
        (f"/save {saved}", "is there already"),
        ("/load /nowhere/x", "/nowhere/x"),
        (f"/load {tmp_path}", str(tmp_path)),
        ("/load", "needs a word"),
        ("/lod x", "did you mean '/load'"),
        ("/method dip", "did you mean 'dpi'"),
    ]:
        with pytest.raises(UserError, match=words):
            chat.command(line)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="no text in UTF-8"):
        chat.command(f"/load {tmp_path / 'b.txt'}")
    assert not chat.command("/quit")


def test_what_is_beyond_the_target_is_refused_and_forgotten() -> None:
    chat, out = made(target=100, new=30)
    with pytest.raises(UserError, match=r"the conversation has 120 tokens, and the target is 100"):
        chat.say(WORDS * 12)
    chat.say(WORDS * 9)
    assert " new 10 at" in said(out), "an answer has the room that is left"
    assert len(chat._turns) == 2


def test_an_answer_that_is_stopped_is_kept_and_its_cache_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, out = made(new=20)
    chat.say(WORDS * 8)
    stock = chat._write
    pieces: list[str] = []

    def write(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 3:
            raise KeyboardInterrupt
        stock(text)

    monkeypatch.setattr(chat, "_write", write)
    chat.say(WORDS)
    monkeypatch.undo()
    whole, _ = made(new=20)
    whole.say(WORDS * 8)
    whole.say(WORDS)
    assert answers(whole)[1].startswith(answers(chat)[1])
    assert 0 < len(answers(chat)[1]) < len(answers(whole)[1])
    assert not chat._kept
    said(out)
    chat.say("The sun")
    assert "in the cache" not in said(out)


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    chat, out = made()
    chat._write("a\x1b[2Jb")
    assert "\x1b" not in said(out)


def test_distances_are_those_of_the_method() -> None:
    for name, params, expected in [
        ("repro_original", {}, 299),
        ("dpi", {"chunk_coe": 1, "local_window": 16}, 63),
        ("repro_se", {"group_size": 6, "window_size": 16}, 63),
    ]:
        model = install(tiny_model(), build_method(name, params), 64)
        assert largest_distance(model, 300) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "dip"], "did you mean 'dpi'"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--window", "0"], "--window 0 must be at least 1"),
        (["--param", "local_windw=4"], "local_windw"),
        (["--windw", "4"], "--windw"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


class Terminal:
    """The chat on a terminal of its own."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", "COLUMNS": "200"}
        command = [sys.executable, "-m", "tools.chat", "--model", "tiny", "--max-new-tokens", "3000"]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environment, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def wait_for(self, words: str, since: int = 0, seconds: float = 240) -> int:
        """Where the words end."""
        end = time.monotonic() + seconds
        while words not in self.text[since:]:
            assert time.monotonic() < end, self.text
            if select.select([self.master], [], [], 1)[0]:
                try:
                    self.text += os.read(self.master, 4096).decode(errors="replace")
                except OSError:
                    break
        assert words in self.text[since:], self.text
        return self.text.index(words, since) + len(words)

    def interrupt(self, words: str, since: int) -> int:
        """Ctrl-C until it is answered; where the answer ends. One between the prompt and its read is lost."""
        for _ in range(20):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                return self.wait_for(words, since, seconds=10)
        raise AssertionError(self.text)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.process.kill()
    made.process.wait()
    os.close(made.master)


def test_ctrl_c_stops_an_answer_and_ctrl_d_ends_the_chat(terminal: Terminal) -> None:
    place = terminal.wait_for("> ")
    terminal.type("Once upon a time\n")
    terminal.wait_for("Once upon a time\r\n", place)
    place = len(terminal.text)
    terminal.wait_for(" the", place)  # it speaks
    terminal.process.send_signal(signal.SIGINT)
    place = terminal.wait_for("tokens/s", place)
    place = terminal.wait_for("> ", place)
    place = terminal.interrupt("/quit or Ctrl-D ends the chat", place)
    terminal.wait_for("> ", place)
    terminal.type("\x04")
    assert terminal.process.wait(timeout=60) == 0
    assert "Traceback" not in terminal.text


def test_lines_of_a_pipe_are_turns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("/help\n\nOnce upon a time\n/lod\n"))
    assert main(["--model", "tiny", "--max-new-tokens", "4"]) == 0
    out = capsys.readouterr().out
    assert "/load FILE" in out
    assert "W 512, target 4,096" in out
    assert "error: unknown command '/lod'" in out
    assert chat_module.HELP.keys() >= {"/quit"}
