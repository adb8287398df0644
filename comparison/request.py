"""What a comparison is asked for, validated: the arguments of `compare.py` with their defaults filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.mistakes import complaints
from tasks.errors import UserError
from tasks.options import Positive

Count = Annotated[int, Field(ge=1, le=10_000, strict=True)]


class Sizes(BaseModel):
    """How much is measured. Every number is of one setting.

    lengths: of passkey and RULER prompts, in tokens, answer included. depths: of passkeys, at each length and in each
    of two haystacks. samples: of each of RULER's tasks, dealt over the lengths. texts: whose loss is measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lengths: tuple[Positive, ...] = Field(min_length=1, max_length=64)
    depths: Count
    samples: Count
    texts: Count


class Request(BaseModel):
    """A comparison as it is asked for. What is found of the model and the machine stands beside it (`storage.FOUND`).

    window: the model's W in tokens. target: the length that methods are to reach. seed: of keys, samples and noise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    window: Positive
    target: Positive
    methods: tuple[str, ...]
    tune: bool
    sizes: Sizes
    texts: Path | None
    dtype: str
    attn_impl: str
    seed: Annotated[int, Field(ge=0, strict=True)]
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.target <= self.window:
            raise ValueError(
                f"--target {self.target} must be larger than the window of {self.window} tokens, where there is nothing"
                " to extend (--window gives another one)"
            )
        if beyond := [length for length in self.sizes.lengths if length > self.target]:
            raise ValueError(f"--lengths: {beyond[0]} is beyond the target of {self.target}; lower it")
        if self.tune and min(self.sizes.depths, self.sizes.samples, self.sizes.texts) < 2:
            raise ValueError(
                "--tune chooses on one half and reports on the other: --depths, --samples and --texts-limit must be at"
                " least 2"
            )
        return self


def make_request(**values: Any) -> Request:
    """A request. Raises `UserError`, one line, for what cannot be."""
    try:
        return Request(**values)
    except ValidationError as error:
        raise UserError("; ".join(complaints(error))) from None


def sizes_for(window: int, target: int, *, tune: bool, gpu: bool) -> Sizes:
    """What is measured where the command line does not say.

    On a GPU: 16 depths at four lengths beyond the window, evenly spaced up to the target; 16 samples of each RULER
    task; eight texts. On a CPU about what the embedded model takes five minutes for: two depths at three lengths, the
    target, a half and a quarter of it; one sample; two texts; twice as many where half of them choose.
    """
    if gpu:
        lengths = (window + (target - window) * k // 4 for k in (1, 2, 3, 4))
        return Sizes(lengths=tuple(dict.fromkeys(lengths)), depths=16, samples=16, texts=8)
    lengths = (length for length in (target // 4, target // 2, target) if length > window or length == target)
    times = 2 if tune else 1
    return Sizes(lengths=tuple(dict.fromkeys(lengths)), depths=2 * times, samples=times, texts=2 * times)
