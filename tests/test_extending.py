"""A method is one class and one line in `METHODS`, a benchmark one class and one line in `TASKS`.

A toy of each goes through the three scripts, a dry run, a sweep and the pictures.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from pydantic import Field
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

import collect_results
import eval as eval_script
import pred
from models.DPI.attention.bands import Segment
from models.DPI.methods import METHODS, Method, Rope
from models.DPI.methods.base import factor_for, one_band, reach_of_factor
from pipeline import report, store
from tasks import TASKS, get_task
from tasks.base import Engine, Generation, Line, Record, Request, Task
from tasks.errors import UserError
from tasks.options import Options, Positive
from tasks.results import DETAIL_FILE, RESULT_FILE, Score, detailed


class Interpolated(Method):
    """Position interpolation (2306.15595): all positions are divided by the factor."""

    name: ClassVar[str] = "toy_interpolated"
    label: ClassVar[str] = "Toy interpolation"
    colour: ClassVar[str] = "#7B3FF2"
    marker: ClassVar[str] = "*"

    factor: float = Field(ge=1.0)

    @classmethod
    @override
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        return factor_for(window, target)

    @override
    def reach(self, window: int) -> float:
        return reach_of_factor(window, self.factor)

    @override
    def segments(self, rope: Rope, past: int, length: int) -> list[Segment]:
        slower = rope.derived((self.name, self.factor), lambda: rope.inv_freq / self.factor)
        return one_band(rope, slower, past, length)


class CopyingOptions(Options):
    """How long a text is copied, and how often."""

    repeats: Positive = Field(3, description="times that the words occur in the prompt")
    words: Positive = 8


class Copying(Task):
    """How well a model expects words that it has read before: the geometric mean of its tokens' probabilities."""

    name = "toy_copying"
    label = "Toy copying"
    folder = "toy/pred"
    prefix = "toy"
    Options = CopyingOptions

    @override
    def datasets(self) -> list[str]:
        return ["animals", "colours"]

    @override
    def records(self, options: CopyingOptions, dataset: str) -> Iterable[Record]:
        words = {"animals": "cat dog horse cow", "colours": "red blue green white"}[dataset].split()
        for number in range(3):
            chosen = [words[(number + i * i) % len(words)] for i in range(options.words)]
            yield {"id": str(number), "text": " ".join(chosen * options.repeats)}

    @override
    def prompt(
        self, options: CopyingOptions, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        return list(tokenizer(record["text"])["input_ids"])[: options.max_pe]

    @override
    def predict(self, engine: Engine, options: CopyingOptions, dataset: str, record: Record) -> Line:
        ids = self.prompt(options, dataset, record, engine.tokenizer)
        probability = float(engine.token_losses(ids, 64).neg().mean().exp())
        (generation,) = engine.generate([Request(ids, 1)])
        assert isinstance(generation, Generation)
        return {
            "pred": generation.text,
            "probability": probability,
            "prefill_len": len(ids),
            "final_len": generation.total_tokens,
        }

    @override
    def score(self, options: CopyingOptions, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        found = {name: [line["probability"] for line in its] for name, its in lines.items()}
        scores = {
            name: Score(float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5), len(values))
            for name, values in found.items()
        }
        detail = {name: asdict(score) for name, score in scores.items()}
        return {RESULT_FILE: {name: score.score for name, score in scores.items()}, DETAIL_FILE: detail}

    @override
    def columns(self, file: str, results: Mapping[str, Any]) -> dict[str, Score]:
        return {name: detailed(value, results, name) for name, value in results.get(file, {}).items()}


TASK = Copying()

SWEEP = """
max_new_tokens = 2

[sweep]
methods = ["toy_interpolated", "repro_original"]
tasks = ["toy_copying", "needle"]

[[sweep.models]]
model = "tiny"
name = "tiny"
windows = [512]
targets = [1024]

[sweep.task.toy_copying]
words = 12

[sweep.task.needle]
lengths = [0.15]
depths = 1
times = 1
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sweep over the toys, which are registered by a line each."""
    monkeypatch.setitem(METHODS, Interpolated.name, Interpolated)
    monkeypatch.setitem(TASKS, Copying.name, (__name__, "TASK"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return tmp_path


def test_a_toy_method_and_a_toy_benchmark_go_through_everything(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = "toy_interpolated-tiny-512-to-1k"
    assert pred.main(["--cfg", "sweep.toml", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert "factor=2" in listed
    assert "4 experiments" in listed
    assert pred.main(["--cfg", "sweep.toml", "--dry-run", "--only", f"toy_copying/{toy}"]) == 0
    assert "toy_copying with toy_interpolated on tiny" in capsys.readouterr().out
    assert not (place / "results").exists()

    assert pred.main(["--cfg", "sweep.toml", "--limit", "2"]) == 0
    for task, folder, prefix in (("toy_copying", "toy/pred", "toy"), ("needle", "needle/pred", "needle")):
        results = place / "results" / folder
        run = store.read_json(results / toy / "run.json")
        assert run["config"]["params"] == {"factor": 2}
        assert ("words" in run["config"]) == (task == "toy_copying")
        assert eval_script.main(["--task", task, "--exp", "all"]) == 0
        assert collect_results.main(["--task", task]) == 0
        picture = matplotlib.image.imread(results / f"{prefix}.png")[..., :3]
        assert close_to(picture, Interpolated.colour) > 20
        assert toy in (results / f"{prefix}.md").read_text()
    table = pd.read_excel(place / "results/toy/pred/toy_repro.xlsx")
    assert list(table["method"]) == ["repro_original", "toy_interpolated"]
    assert list(table.columns)[-6:] == ["animals", "animals ±", "colours", "colours ±", "average", "average ±"]
    assert table["average"].between(1e-4, 1).all()
    assert table["average"].nunique() == 2, "the toy changes what the model computes"
    folders = store.list_experiments(place / "results", TASK)
    figure = TASK.draw([report.read_experiment(folder, TASK) for folder in folders])
    assert figure is not None
    shown = {label.get_text() for label in figure.axes[0].get_yticklabels()}
    assert shown == {"Toy interpolation (limited)", "original (limited)"}
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["animals (2)", "colours (2)"]


def close_to(picture: np.ndarray[Any, Any], colour: str) -> int:
    """How many pixels have a colour. picture: (height, width, 3), 0 to 1."""
    return int((np.abs(picture - np.array(to_rgb(colour))) < 0.02).all(axis=-1).sum())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("words=0", "words = 0"),
        ("wrds=3", "did you mean 'words'"),
        ("times=3", "it belongs to tasks needle and passkey_retrieval, not toy_copying"),
        ("method=toy_interpolate", "toy_interpolated"),
        ("params.factr=2", "factr"),
    ],
)
def test_a_mistake_with_a_toy_is_one_line(place: Path, override: str, said: str) -> None:
    content = {"model": "tiny", "exp_name": "e", "method": "toy_interpolated", "task": "toy_copying", "max_pe": 1024}
    lines = [f"{key} = {json.dumps(value)}" for key, value in content.items()]
    (place / "one.toml").write_text("\n".join([*lines, "[params]", "factor = 2"]))
    with pytest.raises(UserError) as error:
        pred.main(["--cfg", "one.toml", "--set", override])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_of_a_toy_is_refused_elsewhere(place: Path) -> None:
    with pytest.raises(UserError, match="unknown key 'words': it belongs to task toy_copying, not needle"):
        pred.main(["--cfg", "sweep.toml", "--set", "words=3", "--only", "needle/*"])
    assert get_task("toy_copying") is TASK
