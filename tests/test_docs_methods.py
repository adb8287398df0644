"""`docs/methods.md` has a section for every registered method, with its fields and no others."""

import re
from pathlib import Path

import pytest

from models.DPI.methods import METHODS

FOLDER = Path(__file__).parents[1] / "docs"
TEXT = (FOLDER / "methods.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL))


def test_every_method_has_a_section_and_a_row() -> None:
    assert list(SECTIONS) == list(METHODS)
    assert re.findall(r"^\| \[`(\w+)`\]\(#\1\) ", TEXT, flags=re.MULTILINE) == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_parameters_are_the_methods_fields(name: str) -> None:
    """Each begins an item of the list; several may share one."""
    items = re.findall(r"^- ((?:`\w+`(?:, )?)+):", SECTIONS[name], flags=re.MULTILINE)
    found = [parameter for item in items for parameter in re.findall(r"`(\w+)`", item)]
    assert sorted(found) == sorted(METHODS[name].model_fields)


@pytest.mark.parametrize("name", METHODS)
def test_a_section_says_when_to_use_it(name: str) -> None:
    assert "When to use: " in SECTIONS[name]


@pytest.mark.parametrize("name", METHODS)
def test_default_temperatures(name: str) -> None:
    default = METHODS[name].model_fields["temperature"].default
    (said,) = re.findall(r"^- `temperature`: default ([^,;.\s]+(?:\.\d+)?)", SECTIONS[name], flags=re.MULTILINE)
    assert said.strip("`") == (f'"{default}"' if isinstance(default, str) else f"{default:.4f}")


@pytest.mark.parametrize("name", METHODS)
def test_a_section_has_its_picture_and_its_source(name: str) -> None:
    """The picture is there and small; the table's row has distance, reach, bands, causality and source."""
    assert re.findall(r"\(images/(.*?)\)", SECTIONS[name]) == [f"{name}.png"]
    picture = FOLDER / "images" / f"{name}.png"
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.stat().st_size <= 30_000
    (row,) = re.findall(rf"^\| \[`{name}`\].*\|$", TEXT, flags=re.MULTILINE)
    assert len(cells := row.strip("|").split("|")) == 6
    assert all(cell.strip() for cell in cells)


def test_there_are_no_other_pictures() -> None:
    assert sorted(path.stem for path in (FOLDER / "images").iterdir()) == sorted(METHODS)
