from pathlib import Path

import pytest

from models.DPI.methods import METHODS
from pipeline import help as ours
from pipeline.config import RUN_KEYS
from tasks import TASKS, get_task, task_names
from tests.test_cli import ROOT, Run, run

__all__ = ["run"]


def test_methods_are_those_of_the_registry() -> None:
    """The source is read; what is imported must be the same."""
    found = [(its.name, its.label, its.params) for its in ours.methods()]
    assert found == [(name, method.label, tuple(method.model_fields)) for name, method in METHODS.items()]


@pytest.mark.parametrize("script", ["pred", "eval", "collect_results"])
def test_help_has_an_example_and_the_tasks_and_fits_80_columns(
    run: Run, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setitem(TASKS, "a_new_one", ("tasks.needle", "TASK"))
    code, out, _ = run(script, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert f"python {script}.py --" in out.partition("example:")[2]
    listed = out.partition("tasks, and where")[2]
    assert all(f"  {name} " in listed for name in TASKS)


def test_the_examples_of_pred_are_runs_that_nothing_speaks_against(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    examples = [line.split() for line in run("pred", "--help")[1].splitlines() if line.startswith("  python pred.py")]
    assert len(examples) == 2
    for _, _, *arguments in examples:
        code, _, err = run("pred", *arguments, "--dry-run", "--results", tmp_path)
        assert code == 0, err


def test_a_long_key_stands_above_what_it_is() -> None:
    lines = ours.keys_help().splitlines()
    at = lines.index("  ori_max_position_embeddings")
    assert lines[at + 1].startswith(" " * 23 + "the window; ")
    assert "None" not in ours.keys_help(), "TOML has no None: a key is left out"


def test_help_of_pred_has_every_method_with_its_parameters_and_every_key(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = run("pred", "--help")[1].replace(",", " ").replace("*", " ").split()
    assert set(METHODS) <= set(words)
    assert {name for method in METHODS.values() for name in method.model_fields} <= set(words)
    assert set(words) >= RUN_KEYS
    assert {name for task in task_names() for name in get_task(task).Options.model_fields} <= set(words)
