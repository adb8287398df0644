"""Two-sided 95 % confidence intervals of means.

Marks between two bounds, such as scores from 0 to 1: Wilson's interval (1927), which has a width where every mark is
the same, and never leaves the bounds. Numbers without bounds, such as mean losses: Student's.
"""

from __future__ import annotations

import math
from statistics import NormalDist

LEVEL = 0.95
Interval = tuple[float, float]
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
END_MARKS = 0.25
"""Marks added at either end of the scale before a variance is taken. Over simulated scores of 2 to 200 records more of
them give wide intervals where marks vary little, and fewer give intervals that miss the mean too often."""


def wilson(mean: float, variance: float, count: int) -> Interval:
    """Interval of a mean of `count` ≥ 1 marks in [0, 1] with that (population) variance.

    Marks that are all 0 or 1 have the variance p(1 − p), and the interval is Wilson's. Others vary less and tell more:
    they count as `count` · p(1 − p) / variance trials. Both variances are taken with `END_MARKS` of a mark more
    at either end, so that a few marks that happen to be alike do not claim certainty.
    """
    total = count + 2 * END_MARKS
    middle = (count * mean + END_MARKS) / total
    spread = (count * (variance + mean * mean) + END_MARKS) / total - middle * middle
    trials = count * middle * (1 - middle) / spread
    # Wilson's formula with that number of trials.
    weight = 1 / (1 + Z * Z / trials)
    centre = weight * (mean + Z * Z / (2 * trials))
    half = weight * Z * math.sqrt(max(0.0, mean * (1 - mean)) / trials + (Z / (2 * trials)) ** 2)
    return max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean))


def student(mean: float, stderr: float, count: int) -> Interval:
    """Interval of a mean of `count` ≥ 2 numbers with that standard error."""
    half = student_quantile(count - 1) * stderr
    return mean - half, mean + half


def student_quantile(freedom: int) -> float:
    """What Student's t with so many degrees of freedom stays below with probability (1 + LEVEL) / 2."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < LEVEL else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """Probability that Student's |t| is below `t`: the finite series of Abramowitz & Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    series = term if freedom > 1 else 0.0
    for power in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (power - 1) / power
        series += term
    return 2 / math.pi * (angle + math.sin(angle) * series) if odd else math.sin(angle) * series
