"""Scored experiments, as tables and pictures see them, and the one form of a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COMPLETE = "complete"
NO_RUN_RECORD = "no run record"
"""Status of files that another program wrote: nobody says how many records there should be."""


@dataclass(frozen=True)
class Score:
    """A mean over `count` records (None where there are none) with its standard error (None for fewer than two)."""

    score: float | None
    stderr: float | None
    count: int


@dataclass(frozen=True)
class Experiment:
    """A scored experiment. What only a run record knows is None for files that another program wrote.

    window, target: in tokens. status: `COMPLETE`, `NO_RUN_RECORD`, or what is missing. results: contents of the result
    files by name. scores: by column of `result.json`, as `Task.columns` names them; empty where nothing knows them.
    """

    name: str
    method: str | None
    model: str | None
    window: int | None
    target: int | None
    params: Mapping[str, Any]
    status: str
    results: Mapping[str, Any]
    scores: Mapping[str, Score] = field(default_factory=dict)

    @property
    def needs_mark(self) -> bool:
        """Whether a picture must say that something is missing."""
        return self.status not in (COMPLETE, NO_RUN_RECORD)

    @property
    def result(self) -> Any:
        """The content of `result.json`, None before it is scored."""
        return self.results.get("result.json")
