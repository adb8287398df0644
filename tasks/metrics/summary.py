"""Scores with their standard errors, made from the records' marks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.metrics.bootstrap import bootstrap_stderr
from tasks.results import Score, mean_of


def summarise(values: Sequence[float]) -> Score:
    """Mean of marks in [0, 1] as percent, with its bootstrap standard error."""
    if not values:
        return Score(None, None, 0)
    stderr = bootstrap_stderr(values)
    return rounded(Score(100 * sum(values) / len(values), None if stderr is None else 100 * stderr, len(values)))


def proportion(trials: Sequence[float]) -> Score:
    """Mean of trials that are 0 or 1, with the standard error of a proportion."""
    if not trials:
        return Score(None, None, 0)
    mean, count = math.fsum(trials) / len(trials), len(trials)
    return Score(mean, math.sqrt(mean * (1 - mean) / count) if count > 1 else None, count)


def average(scores: Sequence[Score]) -> Score:
    """The unweighted mean over data sets, `tasks.results.mean_of`, rounded."""
    return rounded(mean_of(scores) or Score(None, None, 0))


def rounded(score: Score) -> Score:
    """With the four decimals that result files hold."""
    return Score(_four_decimals(score.score), _four_decimals(score.stderr), score.count)


def _four_decimals(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
