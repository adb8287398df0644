"""The chat on its terminal: options, commands, and how Ctrl-C and Ctrl-D end things."""

import contextlib
import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import chat
from chat import terminal as chat_terminal
from chat.terminal import COMMANDS, interruptible, parser
from tasks.errors import UserError
from tests.conftest import ROOT

TINY = ["--model", "tiny", "--device", "cpu"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "dip"], "did you mean 'dpi'"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--window", "0"], "--window 0 must be at least 1"),
        (["--target", "100"], "--target 100 is below the window of 512 tokens"),
        (["--method", "repro_yarn", "--param", "factor=2.0"], "reaches 1024 tokens"),
        (["--param", "local_windw=4"], "local_windw"),
        (["--param", "local_window"], "--param: 'local_window' is not of the form KEY=VALUE"),
        (["--device", "cuda:99"], "device is 'cuda:99'"),
        (["--attn-impl", "fast"], "attn_impl is 'fast'"),
        (["--seed", "-1"], "seed"),
        (["--windw", "4"], "--windw"),
    ],
)
def test_mistakes_are_user_errors(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        chat.main(arguments)
    assert words in str(caught.value)


def run(text: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The command with a pipe for its input."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tools.chat", *arguments]
    return subprocess.run(command, input=text, capture_output=True, cwd=ROOT, env=environment, timeout=240)


def test_a_mistake_is_one_line_and_exit_code_2() -> None:
    done = run(b"", "--model", "/nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1


def test_help_names_commands_and_methods(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/gali-chat"])
    with pytest.raises(SystemExit):
        chat.main(["--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: gali-chat ")
    assert "gali-chat --model smollm2-135m" in out
    assert all(name in out for name in COMMANDS)
    assert "local_window" in out
    monkeypatch.setattr(sys, "argv", ["/somewhere/tools/chat.py"])
    assert parser().prog == "python -m tools.chat"


def test_lines_of_a_pipe_are_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistakes among them are a line each and end nothing."""
    (tmp_path / "long").write_text("word " * 100_000)
    (tmp_path / "binary").write_bytes(b"\x7fELF\xff\xfe")
    lines = [
        "/help", "", "Once upon a time", "/lod", "/load", "/save", f"/load {tmp_path}", f"/load {tmp_path / 'long'}",
        f"/load {tmp_path / 'binary'}", "word " * 100_000, "/method", "/method dip", "/method repro_yarn",
        "/method a b", "/new", "and", f"/save {tmp_path / 'out.json'}", "/quit", "never said",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert chat.main([*TINY, "--max-new-tokens", "4"]) == 0
    out = capsys.readouterr().out
    assert "tiny with GALI, W 512, target 4,096; /help" in out
    assert all(name in out for name in COMMANDS)
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    for error, words in zip(
        errors,
        [
            "unknown command '/lod'; did you mean '/load'",
            "/load needs a file's name behind it",
            "/save needs a file's name behind it",
            f"cannot read '{tmp_path}': Is a directory",
            "has 500,000 characters, and the target is 4,096 tokens",
            "is no text in UTF-8",
            "the conversation has 1000",
            "did you mean 'dpi'",
            "/method: 'b' is not of the form KEY=VALUE",
        ],
        strict=True,
    ):
        assert words in error
    assert "YaRN: " in out
    assert out.count("distances to") == 2
    assert (tmp_path / "out.json").exists()


def test_bytes_that_are_no_text_do_not_end_the_chat() -> None:
    done = run(b"Once \xff\xfe upon\n/quit\n", *TINY, "--max-new-tokens", "2")
    assert done.returncode == 0, done.stderr
    assert b"new 2 at" in done.stdout
    assert b"Traceback" not in done.stderr


def test_a_key_that_is_held_interrupts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    monkeypatch.setattr(chat_terminal.time, "monotonic", lambda: now[0])
    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        now[0] += 0.2
        signal.raise_signal(signal.SIGINT)
        now[0] += 0.2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, found)


class Terminal:
    """The chat on a terminal of its own."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", "COLUMNS": "200"}
        command = [sys.executable, "-m", "tools.chat", *TINY, "--max-new-tokens", "3000"]
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


def test_ctrl_c_stops_answers_and_ctrl_d_ends_the_chat(terminal: Terminal) -> None:
    place = terminal.wait_for("> ")
    for turn in range(2):  # the session is whole after the first
        terminal.type("Once upon a time\n")
        terminal.wait_for("Once upon a time\r\n", place)
        place = len(terminal.text)
        terminal.wait_for(" the", place)  # it speaks
        terminal.process.send_signal(signal.SIGINT)
        place = terminal.wait_for("tokens/s", place)
        end = terminal.wait_for("> ", place)
        assert ("in the cache" in terminal.text[place:end]) == bool(turn)
        place = end
    place = terminal.interrupt("/quit or Ctrl-D ends the chat", place)
    terminal.wait_for("> ", place)
    terminal.type("\x04")
    assert terminal.process.wait(timeout=60) == 0
    assert "Traceback" not in terminal.text


def test_sigterm_ends_the_chat_without_words(terminal: Terminal) -> None:
    """A signal between a prompt and its read waits for the read's end, in Python itself: the next one ends it.

    It may also meet an interpreter that is ending already, which no longer has a handler: then it is what ends it.
    """
    place = terminal.wait_for("> ")
    sent = 0
    while terminal.process.poll() is None and sent < 6:
        terminal.process.terminate()
        sent += 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            terminal.process.wait(timeout=20)
    assert terminal.process.returncode in ({143} if sent == 1 else {143, -signal.SIGTERM})
    assert "Traceback" not in terminal.text[place:]
