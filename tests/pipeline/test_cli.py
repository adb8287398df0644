import errno
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from pipeline import signals
from pipeline.cli import run_script
from tasks.errors import UserError


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The results folder of the command line."""
    monkeypatch.setattr(sys, "argv", ["pred.py", "--results", str(tmp_path / "r"), "--other"])
    return tmp_path / "r"


def ends(error: BaseException) -> int | str | None:
    """The exit code of a script that ends in an error."""

    def main(argv: list[str]) -> NoReturn:
        raise error

    with pytest.raises(SystemExit) as end:
        run_script(main)
    return end.value.code


def test_a_users_mistake_has_no_traceback(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(UserError("the key\n'a' is\x1b[31m missing")) == 2
    assert capsys.readouterr().err == "error: the key 'a' is\\x1b[31m missing\n"
    assert not results.exists()


def test_what_may_be_a_bug_leaves_a_traceback_in_a_log_that_the_line_names(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = UserError("cannot load the model 'm': KeyError: 'x'")
    error.__cause__ = KeyError("x \ud800")
    for count in (1, 2):
        assert ends(error) == 2
        log = results / "errors.log"
        said = f"error: cannot load the model 'm': KeyError: 'x' (traceback in {str(log)!r})\n"
        assert capsys.readouterr().err == said
        assert log.read_text().count("KeyError: 'x \\ud800'") == count
    assert log.read_text().count("--results") == 2


def test_a_log_that_is_a_link_is_not_written(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (results / "errors.log").symlink_to(victim)
    error = UserError("cannot")
    error.__cause__ = KeyError("x")
    assert ends(error) == 2
    assert capsys.readouterr().err == "error: cannot\n"
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT])
def test_a_fault_of_the_disk_is_one_line(results: Path, capsys: pytest.CaptureFixture[str], number: int) -> None:
    assert ends(OSError(number, os.strerror(number), "some/file")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {os.strerror(number)}: 'some/file'")


def test_a_bug_is_a_traceback(results: Path) -> None:
    def main(argv: list[str]) -> NoReturn:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_script(main)


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_a_run_with_one_line(
    results: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int, said: str
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    # A shell starts what runs in the background with Ctrl-C ignored.
    shell = signal.signal(signal.SIGINT, signal.default_int_handler)

    def main(argv: list[str]) -> int:
        try:
            signal.raise_signal(number)
        except Exception:  # as around a record
            pytest.fail("it was taken for a failed record")
        return 0

    try:
        with pytest.raises(SystemExit) as end:
            run_script(main)
    finally:
        signal.signal(signal.SIGINT, shell)
    assert end.value.code == code
    assert capsys.readouterr().err == f"{said}; the same command goes on from here\n"
    assert signal.getsignal(signal.SIGTERM) == before
    signals.check()  # a later run in this process is not taken for interrupted
