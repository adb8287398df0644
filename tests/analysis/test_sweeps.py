"""What sweeps vary reaches its target; a loss is the mean beyond the window; lines are the settings."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

from analysis.study import Subject, study_of
from analysis.sweeps import (
    Setting,
    chunk_settings,
    draw,
    group_settings,
    local_window_settings,
    sweep,
    window_settings,
)
from models.DPI.methods import build_method
from models.DPI.methods.selfextend import SelfExtend


@pytest.mark.parametrize("window", [64, 512, 4096, 8192])
@pytest.mark.parametrize("target", [1.5, 4.0, 7.3])
def test_every_setting_is_valid_and_reaches_its_target(window: int, target: float) -> None:
    length = int(target * window)
    settings = local_window_settings(window) + chunk_settings(window) + group_settings(window, length)
    for setting in settings + window_settings(window, length):
        build_method(setting.method, setting.params, setting.window or window, length)


def test_a_window_that_a_method_is_told_changes_what_it_does_and_not_where_losses_count() -> None:
    subject = Subject(study_of("tiny"))
    text = "".join(f"Paragraph {number} tells of a ship that left. " for number in range(300))
    found = sweep(subject, [text], 700, [Setting("repro_se", "line", 0.5, {"group_size": 4, "window_size": 128}, 384)])
    model = subject.put("repro_se", {"group_size": 4, "window_size": 128}, 700, 384)
    (ids,) = subject.tokens([text], 700)
    with torch.no_grad():
        log_probabilities = model(ids).logits[0].double().log_softmax(-1)
    losses = [-float(log_probabilities[t - 1, ids[0, t]]) for t in range(512, 700)]
    assert found["loss"].item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_loss_is_the_mean_over_texts_of_what_lies_beyond_the_window() -> None:
    subject = Subject(study_of("tiny"))
    words = "Paragraph {} tells of a ship that left. "
    texts = ["".join(words.format(number) for number in range(first, first + 300)) for first in (0, 1000)]
    settings = [Setting("repro_yarn", "line", 2.0, {"factor": 2})]
    found = sweep(subject, texts, 700, settings)
    model = subject.put("repro_yarn", {"factor": 2})
    expected = []
    with torch.no_grad():
        for ids in subject.tokens(texts, 700):
            log_probabilities = model(ids).logits[0].double().log_softmax(-1)
            losses = [-float(log_probabilities[t - 1, ids[0, t]]) for t in range(512, 700)]
            expected.append(sum(losses) / len(losses))
    assert found[["method", "line", "x"]].values.tolist() == [["repro_yarn", "line", 2.0]]
    assert found["loss"].item() == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_a_setting_that_falls_short_is_refused() -> None:
    subject = Subject(study_of("tiny"))
    with pytest.raises(ValueError, match="less than the target of 700"):
        sweep(subject, ["word " * 2000], 700, [Setting("repro_yarn", "line", 1.0, {"factor": 1})])


def test_a_line_is_a_setting_in_its_methods_colour() -> None:
    rows = [("repro_se", "w = W/2", 2.0, 3.5), ("repro_se", "w = W/2", 4.0, 3.0), ("repro_se", "w = W/4", 2.0, 4.0)]
    figure = draw({"G": pd.DataFrame(rows, columns=["method", "line", "x", "loss"])}, {"G": "group size"})
    first, second = figure.axes[0].lines
    assert np.asarray(first.get_xydata()).tolist() == [[2, 3.5], [4, 3]]
    assert np.asarray(second.get_xydata()).tolist() == [[2, 4]]
    assert {to_hex(line.get_color()).upper() for line in (first, second)} == {SelfExtend.colour}
    assert first.get_linestyle() != second.get_linestyle()
