"""The scores that come with the repository are collected, and hold nothing but settings and scores."""

import json
import shutil
from pathlib import Path

import pytest

import collect_results
from tasks import get_task
from tests.conftest import ROOT

REFERENCE = ROOT / "results" / "reference"


@pytest.mark.parametrize("task", ["longbench", "leval", "pg19"])
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
    assert {path.suffix for path in files if path.parent.name != "pred"} == {".json"}
    for path in REFERENCE.rglob("run.json"):
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        assert not Path(config["data_dir"]).is_absolute()
        assert config["model"] == "smollm2-135m"
