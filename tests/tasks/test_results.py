import math

import pytest

from tasks.results import DETAIL_FILE, Score, detailed, mean_of


def test_a_mean_leaves_out_what_has_no_value() -> None:
    scores = [Score(1.0, 0.3, 5), Score(None, None, 0), Score(4.0, 0.4, 7)]
    assert mean_of(scores) == Score(2.5, pytest.approx(math.sqrt(0.09 + 0.16) / 2), 2)
    assert mean_of([*scores, Score(1.0)]) == Score(2.0, None, 3), "one error is not known"
    assert mean_of([Score(None)]) is None
    assert mean_of([]) is None


def test_the_interval_of_a_mean() -> None:
    narrow, skew = Score(1.0, 0.0, 8, (0.7, 1.0)), Score(0.5, 0.2, 8, (0.1, 0.9))
    mean = mean_of([narrow, skew, Score(None)])
    assert mean is not None
    assert mean.interval == pytest.approx((0.75 - 0.25, 0.75 + 0.2)), "3, 4 and 5 below; 4 alone above"
    assert mean_of([narrow]) == Score(1.0, 0.0, 1, (0.7, 1.0))
    halves = mean_of([narrow, Score(0.5, 0.2, 8)])
    assert halves is not None
    assert halves.interval is None, "one interval is not known"


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (Score(0.875, 0.12, 8, (0.52911, 0.97758)), "0.88 [0.53, 0.98]"),
        (Score(1.0, 0.0, 8, (0.675592, 1.0)), "1.00 [0.68, 1.00]"),
        (Score(41.256, 0.804, 9), "41.26 ± 0.80"),
        (Score(1.0, 0.0, 8), "1.00"),
        (Score(7.0), "7.00"),
        (Score(None, None, 0), ""),
    ],
)
def test_as_people_read_it(score: Score, text: str) -> None:
    assert score.text(2) == text


@pytest.mark.parametrize(
    ("detail", "found"),
    [
        ({"a": {"b": {"score": 1.04, "stderr": 0.2, "count": 3}}}, Score(1.0, 0.2, 3)),
        ({"a": {"b": {"score": 1.04, "stderr": None, "count": 1}}}, Score(1.0, None, 1)),
        (
            {"a": {"b": {"score": 1.04, "stderr": 0.2, "count": 3, "interval": [0.5, 1.5]}}},
            Score(1.0, 0.2, 3, (0.5, 1.5)),
        ),
        ({"a": {"b": {"score": 1.04, "stderr": 0.2, "count": 3, "interval": None}}}, Score(1.0, 0.2, 3)),
        ({"a": {"b": {"score": 1.04, "stderr": 0.2, "count": 3, "interval": [None, 1.5]}}}, Score(1.0, 0.2, 3)),
        ({"a": {"b": {"score": 1.04, "stderr": 0.2, "records": 3}}}, Score(1.0)),
        ({"a": {"b": 1.04}}, Score(1.0)),
        ({"a": 1.04}, Score(1.0)),
        ({}, Score(1.0)),
    ],
)
def test_standard_error_and_count_come_from_the_details_where_they_are(detail: dict[str, object], found: Score) -> None:
    assert detailed(1.0, {DETAIL_FILE: detail}, "a", "b") == found
    assert detailed(1.0, {}, "a", "b") == Score(1.0)
