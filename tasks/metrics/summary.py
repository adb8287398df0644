"""Scores with their standard errors and intervals, made from the records' marks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from tasks.metrics.bootstrap import bootstrap_stderr
from tasks.metrics.intervals import Interval, wilson
from tasks.results import Score, mean_of


def summarise(values: Sequence[float], mean: float | None = None) -> Score:
    """Mean of marks in [0, 1] as percent, with its bootstrap standard error and its interval.

    mean: the score, in [0, 1], where it is another than the plain mean of the marks.
    """
    if not values:
        return Score(None, None, 0)
    if mean is None:
        mean = sum(values) / len(values)
    return in_percent(mean, bootstrap_stderr(values), statistics.pvariance(values), len(values))


def in_percent(mean: float, stderr: float | None, variance: float, count: int) -> Score:
    """A score in percent from numbers in [0, 1]; `variance` is that of the records' marks."""
    low, high = wilson(mean, variance, count)
    interval = 100 * low, 100 * high
    return rounded(Score(100 * mean, None if stderr is None else 100 * stderr, count, interval))


def proportion(trials: Sequence[float]) -> Score:
    """Mean of trials that are 0 or 1, with the standard error of a proportion and Wilson's interval."""
    if not trials:
        return Score(None, None, 0)
    mean, count = math.fsum(trials) / len(trials), len(trials)
    variance = mean * (1 - mean)
    return Score(mean, math.sqrt(variance / count) if count > 1 else None, count, wilson(mean, variance, count))


def average(scores: Sequence[Score]) -> Score:
    """The unweighted mean over data sets, `tasks.results.mean_of`, rounded."""
    return rounded(mean_of(scores) or Score(None, None, 0))


def rounded(score: Score) -> Score:
    """With the four decimals that result files hold."""
    return Score(
        _four_decimals(score.score), _four_decimals(score.stderr), score.count, _interval_in_four(score.interval)
    )


def _interval_in_four(interval: Interval | None) -> Interval | None:
    return None if interval is None else (round(interval[0], 4), round(interval[1], 4))


def _four_decimals(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
