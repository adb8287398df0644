"""The scripts of docs/examples run as they are, on the embedded model, and do what they say."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "docs" / "examples"
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(ROOT)

    def start(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return start


def test_all_are_run() -> None:
    """By the tests below."""
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == {"own_model_and_text", "streaming", "batch", "lora", "harness"}


def test_own_model_and_text(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The grass is green. The sky is blue. " * 60)
    out = run("own_model_and_text", "--text", str(path), "--question", "The grass is", "--window", "256")
    tokens, windows = re.match(r"(\d+) tokens, ([\d.]+) windows\n", out).groups()  # type: ignore[union-attr]
    assert int(tokens) > 512
    assert float(windows) > 2
    assert out.splitlines()[1].strip()


def test_streaming(run: Run) -> None:
    out = run("streaming")
    found = re.findall(r"(\d+) tokens, of which (\d+) are read already", out)
    assert int(found[0][0]) > 512
    assert int(found[0][1]) == 0
    assert int(found[1][1]) >= int(found[0][0]) + 11, "the text and the first answer"
    assert int(found[1][0]) > int(found[1][1])


def test_batch(run: Run) -> None:
    out = run("batch").splitlines()
    assert len(out) == 3
    for line, key in zip(out, ("41837", "90216", "77350"), strict=True):
        assert key in line
        assert line.endswith("as alone: True")
    assert int(out[0].split()[0]) > 2 * 512


def test_lora(run: Run) -> None:
    out = run("lora")
    assert "700 tokens, the window is 512" in out
    losses = [float(found) for found in re.findall(r"loss ([\d.]+)", out)]
    assert len(losses) == 4
    assert losses[3] < losses[0] - 0.01


def test_harness(run: Run) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed; make test-harness runs this")
    out = run("harness")
    assert "dpi: accuracy 1.00\n" in out
    assert float(out.rsplit(" ", 1)[1]) < 1.0, "the original does not reach so far"
