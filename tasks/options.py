"""What a benchmark reads of a configuration: the keys that all share, and each benchmark's own.

Keys keep the names of the paper's configurations: `max_pe` is the target length, `ori_max_position_embeddings` the
window. A TOML file holds them side by side with those that say how a run is made (`pipeline/config.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_COUNT = 100_000_000
"""Of tokens, characters, trials or records: far beyond any model, and still within memory."""
Positive = Annotated[int, Field(gt=0, le=MAX_COUNT, strict=True)]


class Options(BaseModel):
    """What every benchmark reads. A benchmark with keys of its own has a subclass, `Task.Options`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    may_change: ClassVar[frozenset[str]] = frozenset()
    """Keys that change no prediction, but memory or scores: they may differ between two runs of one experiment."""

    max_pe: Positive = Field(description="target length in tokens")
    ori_max_position_embeddings: Positive | Literal["auto"] | None = Field(
        None, description="the window; without it the model's own; auto: its effective window, measured"
    )
    data_dir: Path | None = Field(None, description="folder with the benchmark's data; without it from the hub")
    data_revision: str | None = Field(
        None, min_length=1, description="commit, tag or branch of the hub's data; without it the newest"
    )
    seed: Annotated[int, Field(ge=0, strict=True)] = Field(42, description="of what is drawn, noise included")
    system_prompt: str | None = Field(None, description="system prompt of chat templates; without it none")
    chat: Literal["auto", "none"] = Field("auto", description="auto: the tokenizer's chat template, if it has one")
    max_new_tokens: Positive | None = Field(None, description="without it the benchmark's own")

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.max_new_tokens is not None and self.max_new_tokens >= self.max_pe:
            raise ValueError(
                f"max_new_tokens = {self.max_new_tokens} leaves no room for a prompt within max_pe = {self.max_pe};"
                " lower it"
            )
        return self

    @field_validator("data_dir")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None
