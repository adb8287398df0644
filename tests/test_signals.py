"""Ctrl-C and SIGTERM at many moments of real processes: one line, the right exit code, whole records."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import signals, store
from pipeline.batches import attempt
from tests.test_cli import ROOT, model, place

__all__ = ["model", "place"]

pytestmark = [pytest.mark.timeout(180), pytest.mark.skipif(os.name == "nt", reason="POSIX signals")]

ENDS = {
    signal.SIGINT: (130, "interrupted; the same command goes on from here"),
    signal.SIGTERM: (143, "terminated; the same command goes on from here"),
}
NUMBERS = pytest.mark.parametrize("number", list(ENDS), ids=lambda number: number.name)


def default_signals() -> None:
    """A process in the background of a shell ignores Ctrl-C, and so do those that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that is gone at the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *arguments]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=default_signals,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(err: str) -> list[str]:
    """The lines that a user sees: without those of `-X importtime`, and without the log."""
    return [line for line in err.splitlines() if line and not line.startswith(("import time:", "INFO "))]


@NUMBERS
@pytest.mark.parametrize(
    ("script", "module"),
    [
        ("pred", "pydantic"),
        ("pred", "torch"),
        ("pred", "transformers"),
        ("eval", "rich.console"),
        ("collect_results", "pandas"),
    ],
)
def test_during_imports(place: Path, number: signal.Signals, script: str, module: str) -> None:
    """The signal comes right behind the import of a module, before the next one."""
    arguments = ["--cfg", "needle.toml"] if script == "pred" else ["--task", "leval", "--exp", "all"]
    with started("-X", "importtime", str(ROOT / f"{script}.py"), *arguments) as process:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if line.startswith("import time:") and line.split("|")[-1].strip() == module:
                break
        else:
            pytest.fail(f"{module} was not imported: {''.join(seen[-3:])}")
        process.send_signal(number)
        err = "".join(seen) + process.stderr.read()
        process.wait(timeout=60)
    code, wanted = ENDS[number]
    assert said(err) == [wanted]
    assert process.returncode == code
    assert not (place / "results").exists() or all(store.read_lines(path) for path in place.rglob("needle.jsonl"))


@NUMBERS
def test_between_and_within_records(place: Path, number: signal.Signals) -> None:
    """A run that is stopped again goes on, and every line in its file is whole."""
    path = place / "results/needle/pred/dpi-tiny-64-to-256/needle.jsonl"
    command = [str(ROOT / "pred.py"), "--cfg", "needle.toml", "--set", "times=30", "--limit", "900"]
    counts = [0]
    code, wanted = ENDS[number]
    for pause in (0.0, 0.017):
        with started(*command) as process:
            for _ in range(1200):
                if path.exists() and len(path.read_bytes().splitlines()) > counts[-1]:
                    break
                time.sleep(0.05)
            time.sleep(pause)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        assert process.returncode == code
        assert "Traceback" not in err
        assert said(err.replace("\r", "\n"))[-1] == wanted
        lines = store.read_lines(path)  # raises where the last line is torn
        assert not any(store.is_failed(line) for line in lines)
        assert len({line["id"] for line in lines}) == len(lines) > counts[-1]
        counts.append(len(lines))


def test_a_signal_that_comes_out_as_another_error_is_no_failed_record() -> None:
    """As from the middle of an import, whose error hides the one of the signal."""

    def half_a_module() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except signals.Terminated:
            raise ImportError("half a module") from None

    with signals.watched() as watch:
        with pytest.raises(signals.Terminated):
            attempt(half_a_module)
        assert watch.received == signal.SIGTERM
        with pytest.raises(signals.Terminated):
            attempt(lambda: None)  # nor does the next record begin
    with signals.watched() as watch:
        assert attempt(lambda: 3) == 3
        assert watch.received is None


def test_what_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    code = (
        "import os, signal; from pipeline import signals; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "signals.end_at_once(); os.kill(os.getpid(), signal.SIGINT)\n"
        "with signals.watched(): os.kill(os.getpid(), signal.SIGINT)\n"
        "print('on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout) == (0, "on\n")
