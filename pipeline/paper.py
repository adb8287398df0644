"""What GALI's paper reports for an experiment's setting, to stand beside what was measured (`paper.toml`)."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.base import Task
from tasks.results import RESULT_FILE, Experiment, Score

SOURCE = "arXiv 2502.02659v2"
PUBLISHED = "published"
"""Status of the paper's rows."""


class Setting(BaseModel):
    """One model, window and target of one of the paper's tables. scores: by method, in the order of `columns`."""

    model_config = ConfigDict(extra="forbid")

    table: int
    task: str
    model: str
    window: int
    target: int
    columns: list[str]
    quoted: list[str] = Field(default=[], description="methods whose numbers the paper has from another one")
    scores: dict[str, list[float]]

    @model_validator(mode="after")
    def _rows_are_whole(self) -> Self:
        for method, row in self.scores.items():
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.table}, {method}: {len(row)} numbers for {len(self.columns)} columns")
        return self


@functools.cache
def settings() -> tuple[Setting, ...]:
    """All that the paper's tables have."""
    content = tomllib.loads(Path(__file__).with_name("paper.toml").read_text(encoding="utf-8"))
    return tuple(Setting.model_validate(entry) for entry in content["settings"])


def published(experiment: Experiment, task: Task, columns: Collection[str]) -> Experiment | None:
    """The paper's row for the same benchmark, model, method, window and target; None where it has none.

    A model counts as the same by the last part of its name, wherever it was loaded from. The row has those of
    `columns` that the paper has, so that its average is over what was measured too. Parameters may be other ones.
    """
    if experiment.model is None or experiment.method is None:
        return None
    name = Path(experiment.model).name.casefold()
    setting = experiment.window, experiment.target
    for entry in settings():
        if entry.task != task.name or entry.model.casefold() != name or (entry.window, entry.target) != setting:
            continue
        if experiment.method in entry.scores:
            row = dict(zip(entry.columns, entry.scores[experiment.method], strict=True))
            quoted = ", quoted there" if experiment.method in entry.quoted else ""
            return Experiment(
                name=f"paper, table {entry.table}{quoted}",
                method=experiment.method,
                model=experiment.model,
                window=entry.window,
                target=entry.target,
                params={},
                status=PUBLISHED,
                results={},
                scores={RESULT_FILE: {column: Score(row[column]) for column in columns if column in row}},
            )
    return None


def with_published(experiments: Sequence[Experiment], task: Task, columns: Collection[str]) -> list[Experiment]:
    """Experiments, and the paper's row behind the last one of each setting that it has."""
    found: list[Experiment] = []
    rows = [published(experiment, task, columns) for experiment in experiments]
    for place, (experiment, row) in enumerate(zip(experiments, rows, strict=True)):
        found.append(experiment)
        if row is not None and row.scores[RESULT_FILE] and row not in rows[place + 1 :]:
            found.append(row)
    return found
