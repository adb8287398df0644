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
    """A mean over `count` records (None where there are none) with its standard error (None for fewer than two).

    In a result file it is an object with these three keys. `count` is None in files that do not say.
    """

    score: float | None
    stderr: float | None = None
    count: int | None = None


def mean_of(scores: Sequence[Score]) -> Score | None:
    """The unweighted mean of scores that are independent of each other; those without a value are left out.

    Its standard error needs that of every one; its count is the number of scores. None if no score has a value.
    """
    known = [(score.score, score.stderr) for score in scores if score.score is not None]
    if not known:
        return None
    errors = [stderr for _, stderr in known if stderr is not None]
    stderr = math.hypot(*errors) / len(errors) if len(errors) == len(known) else None
    return Score(math.fsum(score for score, _ in known) / len(known), stderr, len(known))


def detailed(score: float | None, results: Mapping[str, Any], *path: str) -> Score:
    """A score with the standard error and the count that an experiment's "result_detail.json" has at `path`.

    results: contents of the experiment's result files by name. Both are None where there is no object with the keys
    of `Score` at `path`: without the file, or in a file of an earlier version.
    """
    entry: Any = results.get(DETAIL_FILE)
    for key in path:
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    if isinstance(entry, Mapping) and {"score", "stderr", "count"} <= entry.keys():
        return Score(score, entry["stderr"], entry["count"])
    return Score(score)


@dataclass(frozen=True)
class Experiment:
    """A scored experiment. What only a run record knows is None for files that another program wrote.

    window, target: in tokens. status: `COMPLETE`, `NO_RUN_RECORD`, or what is missing. results: contents of the result
    files by name. scores: by name of the result file, then by column (`Task.columns`).
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

    @property
    def needs_mark(self) -> bool:
        """Whether a picture must say that something is missing."""
        return self.status not in (COMPLETE, NO_RUN_RECORD)

    @property
    def result(self) -> Any:
        """The content of `result.json`, None before it is scored."""
        return self.results.get(RESULT_FILE)
