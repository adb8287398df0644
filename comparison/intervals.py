"""Paired bootstrap: how far two settings differ on the same items, with a 95 % interval.

Items are drawn with replacement, for both settings the same ones; a score that is the mean of several groups' means is
drawn within each group. The interval is of percentiles. Of few items, such as four texts, it is too narrow: there
Student's serves better, which `pipeline.paired` has. The tables of benchmarks/QUALITY.md are of percentiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
SEED = 0
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A mean difference and the ends of its interval, which are None for fewer than two items in some group."""

    mean: float
    low: float | None
    high: float | None


def paired_difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Difference:
    """The mean of the groups' mean differences, ours less theirs. Groups of both have the same items in one order."""
    groups = [np.asarray(a, dtype=float) - np.asarray(b, dtype=float) for a, b in zip(ours, theirs, strict=True)]
    mean = float(np.mean([group.mean() for group in groups]))
    if min(map(len, groups)) < 2:
        return Difference(mean, None, None)
    draw = np.random.default_rng(SEED)
    means = np.zeros(RESAMPLES)
    for group in groups:
        means += group[draw.integers(len(group), size=(RESAMPLES, len(group)))].mean(axis=1)
    low, high = np.quantile(means / len(groups), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(mean, float(low), float(high))
