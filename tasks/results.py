"""Scored experiments, as tables and pictures see them, and the one form of a score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RESULT_FILE = "result.json"
DETAIL_FILE = "result_detail.json"
COMPLETE = "complete"
NO_RUN_RECORD = "no run record"
"""Status of files that another program wrote: nobody says how many records there should be."""


@dataclass(frozen=True)
class Score:
    """A mean over `count` records (None where there are none), its standard error and its 95 % confidence interval.

    In a result file it is an object with these four keys. `stderr` is None for fewer than two records, and 0 where all
    have the same mark; `interval`, (low, high) in the score's unit, has a width there too
    (`tasks/metrics/intervals.py`). It is None where nothing is known of the spread, and in files of earlier versions.
    `count` is None in files that do not say.
    """

    score: float | None
    stderr: float | None = None
    count: int | None = None
    interval: tuple[float, float] | None = None

    def text(self, digits: int) -> str:
        """As people read it: "0.88 [0.53, 0.98]"; "0.88 ± 0.12", a standard error, where no interval is known."""
        if self.score is None:
            return ""
        if self.interval is not None:
            low, high = self.interval
            return f"{self.score:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
        # An error of 0 says only that all records are alike.
        return f"{self.score:.{digits}f}" + (f" ± {self.stderr:.{digits}f}" if self.stderr else "")


def mean_of(scores: Sequence[Score]) -> Score | None:
    """The unweighted mean of scores that are independent of each other; those without a value are left out.

    Its standard error and its interval need those of every one; its count is the number of scores. None if no score has
    a value. The interval reaches as far from the mean as the root of the sum of the squares of how far each score's own
    interval reaches, over their number (Zou & Donner, 2008): intervals need not be symmetric, nor have known errors.
    """
    known = [score for score in scores if score.score is not None]
    if not known:
        return None
    number = len(known)
    mean = math.fsum(score.score for score in known if score.score is not None) / number
    errors = [score.stderr for score in known if score.stderr is not None]
    reach = [
        (score.score - score.interval[0], score.interval[1] - score.score)
        for score in known
        if score.score is not None and score.interval is not None
    ]
    stderr = math.hypot(*errors) / number if len(errors) == number else None
    interval = None
    if len(reach) == number:
        below, above = (math.hypot(*side) / number for side in zip(*reach, strict=True))
        interval = mean - below, mean + above
    return Score(mean, stderr, number, interval)


def detailed(score: float | None, results: Mapping[str, Any], *path: str) -> Score:
    """A score with what else the experiment's "result_detail.json" says of it at `path`.

    results: contents of the experiment's result files by name. The score stands alone where there is no object with the
    keys of `Score` at `path`: without the file, or in a file of an earlier version. `interval` may be missing.
    """
    entry: Any = results.get(DETAIL_FILE)
    for key in path:
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not {"score", "stderr", "count"} <= entry.keys():
        return Score(score)
    interval = entry.get("interval")
    if interval is not None:
        low, high = interval
        interval = None if low is None or high is None else (low, high)  # an end that is not known, of a foreign file
    return Score(score, entry["stderr"], entry["count"], interval)


@dataclass(frozen=True)
class Experiment:
    """A scored experiment. What only a run record knows is None for files that another program wrote.

    window, target: in tokens. status: `COMPLETE`, `NO_RUN_RECORD`, or what is missing. results: contents of the result
    files by name. scores: by name of the result file, then by column (`Task.columns`). device: the hardware's name.
    """

    name: str
    method: str | None
    model: str | None
    window: int | None
    target: int | None
    params: Mapping[str, Any]
    status: str
    results: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    device: str | None = None

    @property
    def needs_mark(self) -> bool:
        """Whether a picture must say that something is missing."""
        return self.status not in (COMPLETE, NO_RUN_RECORD)

    @property
    def result(self) -> Any:
        """The content of `result.json`, None before it is scored."""
        return self.results.get(RESULT_FILE)
