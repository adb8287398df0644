"""README's own code is run: its Python, its commands of experiments, its table of a configuration.

It is run as it is written but for what `REPLACED` and `OVERRIDES` say: the embedded model in place of larger ones,
with a window and a text that take seconds.
"""

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

import collect_results
import eval as eval_script
import pred
from models.DPI.patches.Llama import installed_method
from pipeline.config import read_toml
from tests.conftest import ROOT, TINY
from tests.test_readme import README, section

REPLACED = {
    "local_window=512": "local_window=128",
    "max_position_embeddings=1024": "max_position_embeddings=512",
    ":9_000": ":3_000",
    "9_000:18_000": "3_000:6_000",
}
"""In Python. `smollm2-135m` is a copy of the embedded model with a chat template."""

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"

OVERRIDES = (
    "model=tiny",
    "ori_max_position_embeddings=512",
    "max_pe=1024",
    "params.local_window=100",
    "max_new_tokens=4",
    "tasks=['hotpotqa','trec']",
    "device=cpu",
)
"""Of every configuration that a command runs."""

SCRIPTS = {"pred.py": pred.main, "eval.py": eval_script.main, "collect_results.py": collect_results.main}


def blocks(text: str, language: str) -> list[str]:
    """Code between fences of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The lines of Experiments' first block, as words without `python`."""
    lines = [shlex.split(line) for line in blocks(section("Experiments"), "")[0].splitlines()]
    assert all(words[0] == "python" for words in lines)
    return [words[1:] for words in lines]


def replaced(code: str) -> str:
    for written, instead in REPLACED.items():
        code = code.replace(written, instead)
    return code


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    """The embedded model as one with a chat template."""
    folder = shutil.copytree(TINY, tmp_path / "tiny")
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8")) | {"chat_template": TEMPLATE}
    settings.write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_python(chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks after each other, as somebody who pastes them: later ones use the model of the first."""
    found = blocks(README, "python")
    first = replaced(found[0]).replace('"smollm2-135m"', repr(str(chat_model)))
    for written in [*REPLACED, '"smollm2-135m"']:
        assert written in found[0], "REPLACED names what README does not have"
    names: dict[str, Any] = {}
    exec(first, names)
    said = capsys.readouterr().out
    tokens = int(said.split(" tokens", 1)[0])
    assert tokens > 4 * 512
    assert said.split("the window\n", 1)[1].strip()  # the answer was streamed
    assert names["inputs"]["input_ids"].shape == (1, tokens)
    method = installed_method(names["model"])
    assert method is not None
    assert method.name == "dpi"
    for code in found[1:]:
        exec(code, names)
    assert installed_method(names["model"]) is None


def test_commands_of_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two records of two data sets; what `eval.py` and `collect_results.py` are told is there."""
    monkeypatch.chdir(ROOT)
    data, results = tmp_path / "data", tmp_path / "results"
    data.mkdir()
    context = "Ada bought a blue bicycle at the market. " * 120
    for dataset, classes in (("hotpotqa", None), ("trec", ["Food", "Animal"])):
        row = {"input": "Who?", "context": context, "answers": ["Food"], "length": 960, "all_classes": classes}
        (data / f"{dataset}.jsonl").write_text(f"{json.dumps(row)}\n" * 2, encoding="utf-8")
    ran: list[str] = []
    for script, *arguments in commands():
        if script == "pred.py":
            for override in (*OVERRIDES, f"data_dir={str(data)!r}"):
                arguments += ["--set", override]
        assert SCRIPTS[script]([*arguments, "--results", str(results)]) == 0
        ran.append(script)
    assert set(ran) == set(SCRIPTS)
    experiments = {path.parent.name for path in (results / "lb/pred").glob("*/result.json")}
    assert experiments == {"dpi-llama2-7b-4k-to-16k", "dpi-recommended-llama2-7b-4k-to-16k"}
    for name in experiments:
        scores = json.loads((results / "lb/pred" / name / "result.json").read_text(encoding="utf-8"))
        assert set(scores) >= {"hotpotqa", "trec"}
        lines = (results / "lb/pred" / name / "hotpotqa.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2
    assert (results / "lb/pred/lb_dpi.xlsx").is_file()
    assert all(name in (results / "lb/pred/lb.md").read_text(encoding="utf-8") for name in experiments)


def test_the_configuration_shown_is_that_of_its_file() -> None:
    text = section("Configuration")
    (shown,) = blocks(text, "toml")
    (name,) = re.findall(r"`(expcfg/[^`]+\.toml)`:", text)
    assert tomllib.loads(shown) == read_toml(ROOT / name)


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"(?<![\w/])((?:expcfg|images|models|tools|benchmarks|tests)/[\w./]+\.\w+)", README))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
