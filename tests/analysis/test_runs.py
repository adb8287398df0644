"""Benchmarks without files: every method, a new one too, and the numbers that the model's own logits give."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from matplotlib.colors import to_rgba
from typing_extensions import override

from analysis import positions
from analysis.pictures import describe
from analysis.runs import needles, perplexity
from analysis.study import Subject, study_of
from models.DPI.attention.bands import Segment
from models.DPI.methods import METHODS, Method, Rope, build_method, methods_of_the_paper
from models.DPI.methods.base import factor_for, one_band
from tasks import get_task

TEXT = "".join(f"Paragraph {number} tells of a ship that left, and of another that stayed. " for number in range(600))


class Toy(Method):
    """Slows all frequencies down by a factor."""

    name: ClassVar[str] = "toy"
    label: ClassVar[str] = "Toy"
    colour: ClassVar[str] = "#123456"
    marker: ClassVar[str] = "*"
    in_paper: ClassVar[bool] = True  # or studies would leave it out

    factor: int | float = 1

    @classmethod
    @override
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        return factor_for(window, target)

    @override
    def reach(self, window: int) -> float:
        return window * self.factor

    @override
    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        return one_band(rope, rope.derived(self, lambda: rope.inv_freq / self.factor), past, length)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> type[Toy]:
    """A method that one line makes known."""
    monkeypatch.setitem(METHODS, "toy", Toy)
    return Toy


@pytest.fixture(scope="module")
def subject() -> Subject:
    study = study_of("tiny", short=True)
    return Subject(replace(study, needles=(500, 900), depths=1))


def test_a_new_method_is_studied_and_its_positions_are_drawn(toy: type[Toy], subject: Subject) -> None:
    methods = subject.study.methods(2048)
    assert methods["toy"] == {"factor": 4}
    rope = subject.rope()
    seen = {
        name: positions.relative_distances(build_method(name, params, 512), rope, 2048, cells=32)
        for name, params in methods.items()
    }
    index = seen["toy"].queries
    torch.testing.assert_close(seen["toy"].distance[-1], (index[-1] - index) / 4, check_dtype=False)
    notes = {name: describe(params) for name, params in methods.items()}
    panels = {axis.get_title(): axis.spines["left"].get_edgecolor() for axis in positions.draw(seen, 512, notes).axes}
    assert panels["Toy\nfactor = 4"] == to_rgba(Toy.colour)


def test_a_new_method_finds_needles(toy: type[Toy], subject: Subject) -> None:
    found = {experiment.name: experiment for experiment in needles(subject)}
    assert list(found) == [method.label for method in methods_of_the_paper().values()]
    for experiment in found.values():
        assert (experiment.window, experiment.target, experiment.model) == (512, 1024, "tiny")
        assert {cell["context_length"] for cell in experiment.result} == {500, 900}
        assert len(experiment.result) == 2 * subject.study.depths
        assert list(experiment.scores["result.json"]) == ["500", "900"]
    assert found["Toy"].params == {"factor": 2}
    # What the embedded model is known for: the key within its window, and beyond it with GALI alone.
    assert found["original"].scores["result.json"]["500"].score == 1
    assert found["original"].scores["result.json"]["900"].score == 0
    assert found["GALI"].scores["result.json"]["900"].score == 1
    figure = get_task("needle").draw(list(found.values()))
    assert figure is not None
    assert set(found) <= {axis.get_title().split("\n")[0] for axis in figure.axes}
    assert "CPU" in figure.get_supxlabel()


def test_a_new_method_has_a_perplexity(toy: type[Toy], subject: Subject) -> None:
    found = {experiment.name: experiment for experiment in perplexity(subject, ["too short", TEXT])}
    assert list(found) == [method.label for method in methods_of_the_paper().values()]
    (ids,) = subject.tokens([TEXT], 1024)
    for experiment in found.values():
        assert list(experiment.result) == [str(length) for length in range(128, 1025, 128)]
        assert experiment.scores["result.json"]["1024"].score == experiment.result["1024"]
        model = subject.put(experiment.method or "", dict(experiment.params))
        with torch.no_grad():
            log_probabilities = model(ids).logits[0].double().log_softmax(-1)
        loss = -sum(float(log_probabilities[t - 1, ids[0, t]]) for t in range(1, 640)) / 639
        assert experiment.result["640"] == pytest.approx(math.exp(loss), rel=1e-5)
    figure = get_task("pg19").draw(list(found.values()))
    assert figure is not None
    (toys,) = (line for line in figure.axes[0].lines if line.get_label() == "Toy")
    assert toys.get_color() == Toy.colour
