"""The scores that come with the repository are collected, and hold nothing but settings and scores."""

import json
import shutil
from pathlib import Path

import pytest

import collect_results
import comparison
from tasks import get_task
from tests.conftest import ROOT

REFERENCE = ROOT / "results" / "reference"


@pytest.mark.parametrize("task", ["longbench", "leval", "needle", "pg19"])
def test_they_are_collected(task: str, tmp_path: Path) -> None:
    shutil.copytree(REFERENCE, tmp_path / "reference")
    arguments = ["--task", task, "--exp", "all", "--results", str(tmp_path / "reference")]
    assert collect_results.main(arguments) == 0
    folder = tmp_path / "reference" / get_task(task).folder
    table = (folder / f"{get_task(task).prefix}.md").read_text(encoding="utf-8")
    names = [path.name for path in (REFERENCE / get_task(task).folder).iterdir()]
    assert len(names) > 10
    assert all(name in table for name in names)


def test_they_hold_no_data_and_no_path_of_a_machine() -> None:
    files = [path for path in REFERENCE.rglob("*") if path.is_file() and path.name != "README.md"]
    scored = [path for path in files if path.parent.name != "pred" and REFERENCE / "compare" not in path.parents]
    assert {path.suffix for path in scored} == {".json"}
    for path in REFERENCE.rglob("run.json"):
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        assert not Path(config["data_dir"] or "").is_absolute()
        assert config["model"] == "smollm2-135m"


@pytest.mark.parametrize("target", ["16k", "32k"])
def test_comparisons_are_those_of_quality_md(target: str) -> None:
    """Every loss of a setting stands in the table, and there is no prompt beside the scores."""
    folder = REFERENCE / "compare" / f"smollm2-135m-8k-to-{target}"
    assert {path.name for path in folder.iterdir()} == {"items.json", "request.json", "scores.jsonl", "settings.json"}
    assert json.loads((folder / "request.json").read_text(encoding="utf-8"))["request"]["texts"] == "texts"
    found = comparison.load(folder)
    table = (ROOT / "benchmarks" / "QUALITY.md").read_text(encoding="utf-8")
    reported = found.reported()
    assert len(reported) > 30
    for key in reported:
        point = found.point(found.settings[key], found.half(chooses=False))
        assert f"| {point.loss:.4f} |" in table
        assert f"| {point.retrieval:.3f} |" in table
