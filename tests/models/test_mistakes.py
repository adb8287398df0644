from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.mistakes import complaints, did_you_mean


class Inner(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    size: int = 1


class Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    count: int = Field(1, gt=0, le=9)
    share: int | float = 0.5
    names: list[str] | str = "x"
    table: dict[str, int | str] = Field(default_factory=dict)
    inner: list[Inner] = Field(default_factory=list)
    ratio: float = Field(0.5, ge=0.25)


def said(content: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as error:
        Shape.model_validate(content)
    return complaints(error.value, Shape.model_fields, noun="field")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"count": "x"}, "count = 'x': must be a whole number"),
        ({"count": 0}, "count = 0: must be greater than 0"),
        ({"count": 10}, "count = 10: must be at most 9"),
        ({"share": "x"}, "share = 'x': must be a number"),
        ({"names": 3}, "names = 3: must be a list or a text"),
        ({"table": {"a": 1.5}}, "table.a = 1.5: must be a whole number or a text"),
        ({"inner": [{}, {"size": None}]}, "inner.1.size = None: must be a whole number"),
        ({"inner": [{"sise": 1}]}, "unknown field 'inner.0.sise'"),
        ({"ratio": float("nan")}, "ratio = nan: must be a finite number"),
        ({"ratio": 0.0}, "ratio = 0.0: must be at least 0.25"),
        ({"conut": 1}, "unknown field 'conut'; did you mean 'count'?"),
    ],
)
def test_a_mistake_in_words(content: dict[str, Any], line: str) -> None:
    assert said(content) == [line]


def test_two_fields_of_one_value_stay_two_mistakes() -> None:
    assert said({"count": True, "ratio": True}) == [
        "count = True: must be a whole number",
        "ratio = True: must be a number",
    ]


def test_a_long_value_is_cut() -> None:
    assert len(said({"count": "x" * 10_000})[0]) < 200


def test_the_nearest_word() -> None:
    assert did_you_mean("longbanch", ["needle", "longbench"]) == "; did you mean 'longbench'?"
    assert did_you_mean("xyz", ["needle", "longbench"]) == ""
