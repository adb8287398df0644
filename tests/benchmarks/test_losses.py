"""The benchmark of losses: every setting runs, labelled by its method."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import losses
from models.DPI.dpi import get_model_and_tokenizer
from models.DPI.methods import build_method


def test_settings_reach_twice_the_window() -> None:
    for method, _, params in losses.SETTINGS:
        build_method(method, params, 8192, 16384)


def test_a_setting_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("A ship left the harbour before dawn. " * 200, encoding="utf-8")
    options = ["--text", str(tmp_path), "--model", "tiny", "--length", "700", "--only", "YaRN"]
    monkeypatch.setattr(sys, "argv", ["losses", *options])
    losses.main()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "YaRN" in line)
    label, loss, _ = (cell.strip() for cell in line.strip("│ ").split("│"))
    assert label == "YaRN 2"
    model, tokenizer = get_model_and_tokenizer("tiny", None, "repro_yarn", {"factor": 2.0})
    ids = tokenizer((tmp_path / "text.txt").read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :700]
    with torch.no_grad():
        log_probabilities = model(ids).logits[0].double().log_softmax(-1)
    expected = -sum(float(log_probabilities[t - 1, ids[0, t]]) for t in range(512, 700)) / (700 - 512)
    assert float(loss) == pytest.approx(expected, abs=1e-4)
