import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.jsonl import read_rows

FIELDS = ("input", "context", "answers", "length")
ROW: dict[str, Any] = {"input": "q", "context": "c", "answers": ["a"], "length": 3, "all_classes": None}


def written(folder: Path, *lines: str) -> Path:
    path = folder / "d.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def row(**fields: Any) -> str:
    return json.dumps({**ROW, **fields})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (row(input=None), r"input = None: must be a text"),
        (row(context=["c"]), r"context = \['c'\]: must be a text"),
        (row(length="3"), r"length = '3': must be a whole number"),
        (row(length=None), r"length = None"),
        (row(answers=[1]), r"answers\.0 = 1: must be a text"),
        (row(answers=None), r"answers = None: must be a list"),
        (row(all_classes="x"), r"all_classes = 'x': must be a list"),
        (row(instructions="x"), r"instructions = 'x': must be a list"),
        ("[1]", r"has no 'input'"),
        ("3", r"has no 'input'"),
        ("{", r"is not valid JSON"),
        ("[" * 100_000, r"is not valid JSON"),
        ('{"length": ' + "9" * 5000 + "}", r"is not valid JSON"),
    ],
)
def test_a_mistake_names_file_line_and_field(tmp_path: Path, line: str, said: str) -> None:
    path = written(tmp_path, row(), line)
    with pytest.raises(UserError, match=said) as error:
        read_rows(path, FIELDS)
    assert f"{str(path)!r} line 2" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_text_instead_of_answers_is_the_only_answer_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert read_rows(written(tmp_path, row(answers="Paris")), FIELDS)[0]["answers"] == ["Paris"]
    assert "line 1: answers is a text" in caplog.text


def test_what_the_benchmarks_do_not_read_may_be_anything(tmp_path: Path) -> None:
    assert read_rows(written(tmp_path, row(other=[1], _id=3)), FIELDS) == [{**ROW, "other": [1], "_id": 3}]


def test_a_lone_surrogate_is_read(tmp_path: Path) -> None:
    assert read_rows(written(tmp_path, row(context="\ud800")), FIELDS)[0]["context"] == "\ud800"
