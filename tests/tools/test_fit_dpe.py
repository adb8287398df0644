"""The fit of DPE's scales: one group at a time, by scores that a pass gives."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from models.DPI.short_names import tiny
from tools import fit_dpe
from tools.fit_dpe import Score, base_scale, fit, make_trials, score


def test_each_group_gets_its_best_while_the_others_stay() -> None:
    asked: list[list[int]] = []

    def measure(scales: list[int]) -> Score:
        """Group g likes 2 ** (g + 1)."""
        asked.append(scales)
        return Score(0.5, -sum(abs(scale - 2 ** (g + 1)) for g, scale in enumerate(scales)))

    chosen, scores = fit(measure, 3, 5, (2, 4, 8, 16))
    assert chosen == [2, 4, 8]
    assert len(scores) == len(asked) == 12
    assert all(sum(scale != 5 for scale in scales) == 1 for scales in asked)


def test_keys_found_come_before_their_likelihood() -> None:
    values = {3: Score(0.5, -9.0), 4: Score(0.25, -0.1), 5: Score(0.5, -8.0)}
    assert fit(lambda scales: values[scales[0]], 1, 1, (3, 4, 5))[0] == [5]


@pytest.mark.parametrize(
    ("window", "target", "near", "expected"), [(512, 4096, 64, 9), (64, 64, 8, 1), (64, 121, 8, 3)]
)
def test_the_base_is_the_smallest_that_reaches(window: int, target: int, near: int, expected: int) -> None:
    assert base_scale(window, target, near) == expected
    assert (window - near) * expected + near >= target


def test_a_key_is_found_where_every_token_is_the_likeliest() -> None:
    ids = torch.tensor([[5, 6, 7, 2, 3]])
    kept: list[int] = []

    def model(ids: torch.Tensor, use_cache: bool, logits_to_keep: int) -> Any:
        kept.append(logits_to_keep)
        logits = torch.zeros(1, 3, 9)
        logits[0, 0, 2] = logits[0, 1, 3 if len(kept) == 1 else 4] = 5.0
        return SimpleNamespace(logits=logits)

    model.device = torch.device("cpu")  # type: ignore[attr-defined]
    found = score(model, [(ids, 2), (ids, 2)])  # type: ignore[arg-type]
    assert kept == [3, 3]
    assert found.found == 0.5
    rows = torch.zeros(2, 9)
    rows[0, 2] = rows[1, 4] = 5.0
    likely, unlikely = (float(torch.log_softmax(rows[r], 0)[t]) for r, t in ((0, 2), (1, 3)))
    assert found.log_likelihood == pytest.approx((3 * likely + unlikely) / 2)


def test_trials_end_with_the_answer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny().folder)
    text = "\n\n".join(f"Paragraph {n} tells of a ship." for n in range(400))
    for ids, answer in make_trials(tokenizer, text, 400, 4):
        assert 370 <= ids.shape[1] <= 400
        whole, key = tokenizer.decode(ids[0]), tokenizer.decode(ids[0, -answer:]).strip()
        assert whole.endswith(f"The pass key is {key}")
        assert f"The pass key is {key}. Remember it." in whole
        assert len(key) in (5, 6)


def test_the_program_runs_on_the_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--target", "700", "--groups", "2", "--trials", "2", "--candidates", "1", "3"]
    fit_dpe.main(options)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("# group ") for line in lines) == 4
    assert lines[-2].startswith("scales = [")
    assert lines[-1] == "window_size = 64"


@pytest.mark.parametrize("options", [["--target", "500"], ["--target", "700", "--groups", "0"]])
def test_mistakes_are_said(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        fit_dpe.main(options)
    assert "must be" in capsys.readouterr().err
