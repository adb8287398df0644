import subprocess
import sys
from pathlib import Path

import pytest

import tasks
from tasks import canonical_task_name, get_task, task_names
from tasks.errors import UserError

ROOT = Path(tasks.__file__).parents[1]


def test_names_and_spellings() -> None:
    assert {name: get_task(name).name for name in task_names()} == {name: name for name in task_names()}
    assert canonical_task_name("longbenh") == "longbench"
    assert get_task("passkey_retreival").name == "passkey_retrieval"
    with pytest.raises(UserError, match="unknown task 'longbanch'; did you mean 'longbench'"):
        get_task("longbanch")


def test_a_line_adds_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TASKS, "toy", ("tasks.needle", "TASK"))
    assert "toy" in task_names()
    assert canonical_task_name("toy") == "toy"
    assert get_task("toy") is get_task("needle")
    with pytest.raises(UserError, match="did you mean 'toy'"):
        get_task("toys")


def loaded_by(code: str) -> set[str]:
    """Top-level packages, and modules of matplotlib, after running `code` in a new interpreter."""
    code += "\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    modules = set(done.stdout.split())
    return {name.partition(".")[0] for name in modules} | {name for name in modules if name.startswith("matplotlib")}


def test_benchmarks_import_neither_what_runs_them_nor_what_draws() -> None:
    files = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "tasks").rglob("*.py"))]
    modules = [".".join(path.parts) for path in files if "pictures" not in path.parts and path.name != "__init__"]
    assert "tasks.passkey_retrieval" in modules
    loaded = loaded_by("import " + ", ".join(["tasks", *modules]))
    assert {"tasks", "pydantic"} <= loaded
    assert not loaded & {"pipeline", "analysis", "matplotlib", "pandas", "torch"}  # PyTorch takes seconds


def test_pictures_choose_no_backend() -> None:
    files = sorted((ROOT / "tasks" / "pictures").glob("*.py"))
    modules = [f"tasks.pictures.{path.stem}" for path in files if path.stem != "__init__"]
    assert len(modules) == 4
    loaded = loaded_by("import " + ", ".join(modules))
    assert "matplotlib.figure" in loaded
    assert not loaded & {"pipeline", "analysis", "matplotlib.pyplot"}
