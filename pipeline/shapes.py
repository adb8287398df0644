"""The shapes of what is read from a results folder, checked once where it is read.

Other programs' files and other versions' may have more keys than are named here. What a benchmark needs besides is its
own to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from models.mistakes import complaints
from pipeline.config import TaskName
from tasks.base import Line
from tasks.errors import UserError

MOST_LOSS = 1e15
"""Of a sum of losses, in nats: far beyond any text, and its square is a number yet."""
Loss = Annotated[float, Field(ge=-MOST_LOSS, le=MOST_LOSS)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=_Shape)


class RunConfig(_Shape):
    """The keys of a run record's configuration that are read without knowing the benchmark."""

    task: TaskName
    method: str | None = None
    model: str | None = None
    max_pe: PositiveInt | None = None
    params: dict[str, Any] = Field(default_factory=dict)


class DatasetCount(_Shape):
    """How many records a data set has, and whether `limit` or `test` cut it short."""

    records: NonNegativeInt
    limited: bool


class RunShape(_Shape):
    """`run.json`."""

    config: RunConfig
    window: PositiveInt | None = None
    datasets: dict[str, DatasetCount] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    device: str | None = None
    data: dict[str, Any] | None = None
    automatic: dict[str, Any] | None = None


class ScoredShape(_Shape):
    """The counts in `result_detail.json`'s "run"."""

    predicted: NonNegativeInt
    failed: NonNegativeInt
    expected: NonNegativeInt | None
    limited: bool


class LineShape(_Shape):
    """A line of a prediction file. `pred` is a text in every benchmark here; toys may have numbers."""

    id: str | int | None = None
    error: str | None = None
    pred: str | int | float | None = None
    answers: list[str] | str | None = None
    all_classes: list[str] | None = None
    length: float = 0
    prefill_len: NonNegativeInt | None = None
    final_len: NonNegativeInt | None = None
    prompt_len: NonNegativeInt | None = None
    evaluation: str | None = None
    # What is scored may be absent, which the benchmark says, but not null.
    turn: NonNegativeInt = 0
    context_length: PositiveInt = 1
    depth_percent: float = 0
    loss_sum: Loss = 0
    loss_sums: dict[str, Loss] = Field(default_factory=dict)
    scored_tokens: NonNegativeInt = 0


def check_run(run: Any, source: str) -> dict[str, Any]:
    """A run record with `window`, `datasets`, `versions` and `params` filled in. Raises `UserError` with the field."""
    found = _check(RunShape, run, f"{source} is no run record", "remove the folder or run pred.py --overwrite")
    filled = {"window": None, "datasets": {}, "versions": {}, "device": None, "automatic": None, **run}
    return {**filled, "config": {"params": {}, **run["config"], "task": found.config.task}}


def check_scored(scored: Any, place: str) -> None:
    """Raise `UserError`, with the field, for a "run" of another shape. place: the file."""
    _check(ScoredShape, scored, f"{place}: run", "restore the file, or predict and score again")


def check_line(line: Line, place: str) -> None:
    """Raise `UserError`, with the field, for a prediction line of another shape. place: file and line number."""
    _check(LineShape, line, place, "restore the file, or run pred.py --overwrite")


def _check(shape: type[S], content: Any, place: str, advice: str) -> S:
    if not isinstance(content, Mapping):
        raise UserError(f"{place}: it is no JSON object; {advice}")
    try:
        return shape.model_validate(content)
    except ValidationError as error:
        said = complaints(error)[0]
        raise UserError(f"{place}: {said if len(said) < 300 else said[:300] + ' ...'}; {advice}") from None
