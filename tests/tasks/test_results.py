import math

import pytest

from tasks.results import DETAIL_FILE, Score, detailed, mean_of


def test_a_mean_leaves_out_what_has_no_value() -> None:
    scores = [Score(1.0, 0.3, 5), Score(None, None, 0), Score(4.0, 0.4, 7)]
    assert mean_of(scores) == Score(2.5, pytest.approx(math.sqrt(0.09 + 0.16) / 2), 2)
    assert mean_of([*scores, Score(1.0)]) == Score(2.0, None, 3), "one error is not known"
    assert mean_of([Score(None)]) is None
    assert mean_of([]) is None


@pytest.mark.parametrize(
    ("detail", "found"),
    [
        ({"a": {"b": {"score": 1.04, "stderr": 0.2, "count": 3}}}, Score(1.0, 0.2, 3)),
        ({"a": {"b": {"score": 1.04, "stderr": None, "count": 1}}}, Score(1.0, None, 1)),
        ({"a": {"b": {"score": 1.04, "stderr": 0.2, "records": 3}}}, Score(1.0)),
        ({"a": {"b": 1.04}}, Score(1.0)),
        ({"a": 1.04}, Score(1.0)),
        ({}, Score(1.0)),
    ],
)
def test_standard_error_and_count_come_from_the_details_where_they_are(detail: dict[str, object], found: Score) -> None:
    assert detailed(1.0, {DETAIL_FILE: detail}, "a", "b") == found
    assert detailed(1.0, {}, "a", "b") == Score(1.0)
