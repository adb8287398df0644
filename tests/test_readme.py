"""The README names what is there: families, methods with their parameters, benchmarks, configuration keys."""

import re
from pathlib import Path

import pytest

from models.DPI.methods import METHODS
from models.DPI.patches.families import FAMILIES
from pipeline.config import ExperimentConfig
from tasks import get_task, task_names

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading, up to the next of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", README, flags=re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def words(text: str) -> set[str]:
    return set(re.findall(r"`([^`\s]+)`", text))


def test_families() -> None:
    """In the table of models: all of them, and no other."""
    table = {word for line in section("Models").splitlines() if line.startswith("|") for word in words(line)}
    assert table - {"model_type"} == set(FAMILIES)


@pytest.mark.parametrize("name", METHODS)
def test_methods_and_their_parameters(name: str) -> None:
    text = words(section("Methods"))
    assert name in text
    assert set(METHODS[name].model_fields) <= text


@pytest.mark.parametrize("name", task_names())
def test_tasks_and_their_options(name: str) -> None:
    assert name in words(section("Tasks"))
    assert set(get_task(name).Options.model_fields) <= words(section("Configuration")) | words(section("Tasks"))


def test_keys_of_an_experiment() -> None:
    keys = set(ExperimentConfig.model_fields) - {"options", "params"}
    assert keys <= words(section("Configuration"))
    assert "`[params]`" in section("Configuration")
