import random
import statistics

import pytest

from tasks.metrics.intervals import student, student_quantile, wilson
from tests.tasks.fakes import inverted_score_test


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 8), (3, 7), (7, 8), (8, 8), (160, 161), (500, 1000)])
def test_marks_of_0_and_1_have_wilsons_interval(right: int, count: int) -> None:
    mean = right / count
    assert wilson(mean, mean * (1 - mean), count) == pytest.approx(inverted_score_test(mean, count), abs=1e-6)


def test_published_intervals() -> None:
    """Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (right, count), ends in published.items():
        mean = right / count
        assert wilson(mean, mean * (1 - mean), count) == pytest.approx(ends, abs=5e-5)


def test_marks_in_between_are_narrower_and_never_without_width() -> None:
    low, high = wilson(0.5, 0.01, 40)
    assert 0.03 < high - low < 0.1 < 0.2 < wilson(0.5, 0.25, 40)[1] - wilson(0.5, 0.25, 40)[0]
    widths = []
    for count in (1, 2, 5, 20, 100, 1000):
        low, high = wilson(0.4, 0.0, count)
        assert 0 <= low < 0.4 < high <= 1
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.01


@pytest.mark.parametrize("count", [3, 8, 30, 200])
@pytest.mark.parametrize("kind", ["trials", "narrow", "many zeros", "few misses"])
def test_nineteen_of_twenty_intervals_hold_the_true_mean(kind: str, count: int) -> None:
    draw = random.Random(f"{kind}/{count}")
    mark, mean = {
        "trials": (lambda: float(draw.random() < 0.7), 0.7),
        "narrow": (lambda: draw.betavariate(4, 12), 0.25),
        "many zeros": (lambda: draw.betavariate(2, 3) if draw.random() < 0.4 else 0.0, 0.16),
        "few misses": (lambda: draw.betavariate(1, 1) if draw.random() < 0.2 else 1.0, 0.9),
    }[kind]
    held = 0
    for _ in range(500):
        marks = [mark() for _ in range(count)]
        low, high = wilson(statistics.fmean(marks), statistics.pvariance(marks), count)
        held += low <= mean <= high
    assert held / 500 > 0.91


def test_students_quantiles() -> None:
    tabled = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 7: 2.3646, 10: 2.2281, 30: 2.0423, 99: 1.9842}
    for freedom, wanted in tabled.items():
        assert student_quantile(freedom) == pytest.approx(wanted, abs=1e-4)
    assert student(5.0, 2.0, 4) == pytest.approx((5 - 2 * 3.18245, 5 + 2 * 3.18245), abs=1e-4)
