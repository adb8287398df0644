"""What a method is: validated parameters, and the bands they mean. Pure: no model, no transformers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.DPI.attention.bands import Band, Segment
from models.DPI.attention.noise import Noise
from models.DPI.attention.tables import Frequencies, KeyPositions

TRUE_POSITIONS = KeyPositions()

MAX_TOKENS = 1 << 40
"""Far beyond any model, and far below where positions in fp64 lose their fractions."""
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Factor = Annotated[float, Field(ge=1.0, le=1e9)]
"""Its powers stay far from where fp64 overflows."""

# Other frequencies that a Rope keeps, with their tables. Dyn-NTK makes new ones for every token.
_KEPT = 4


@dataclass(frozen=True, eq=False)
class Rope:
    """A model's rotary scheme.

    inv_freq: (rotary_dim/2,) fp32. scaling: factor on cos and sin of queries and of keys.
    window: W, the length the model was trained on. theta: the base; None where no method needs it.
    at_base: the scheme's frequencies, (rotary_dim/2,) fp32, if its base were another; None for the plain ones,
        theta ** (-2i / rotary_dim).
    """

    inv_freq: Tensor
    window: int
    theta: float | None = None
    scaling: float = 1.0
    at_base: Callable[[float], Tensor] | None = None
    _derived: dict[Hashable, Frequencies] = field(default_factory=dict, repr=False)

    @cached_property
    def frequencies(self) -> Frequencies:
        """The model's own frequencies, with the tables built from them."""
        return Frequencies(self.inv_freq)

    @property
    def rotary_dim(self) -> int:
        """Components of a head that rotate."""
        return 2 * self.inv_freq.numel()

    def frequencies_at(self, theta: float) -> Tensor:
        """The scheme's frequencies at another base, (rotary_dim/2,) fp32."""
        return frequencies_of(theta, self.rotary_dim) if self.at_base is None else self.at_base(theta)

    def derived(self, key: Hashable, make: Callable[[], Tensor]) -> Frequencies:
        """The frequencies (rotary_dim/2,) that `make` computes, kept under `key` with the tables built from them."""
        found = self._derived.get(key)
        if found is None:
            found = self._derived[key] = Frequencies(make())
            for old in list(self._derived)[:-_KEPT]:
                self._derived.pop(old, None)
        return found


def frequencies_of(theta: float, rotary_dim: int) -> Tensor:
    """theta ** (-2i / d), (d/2,) fp32."""
    return 1.0 / (theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim))


class Method(BaseModel, ABC):
    """Parameters of one method. Unknown and mistyped ones are refused when it is built."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    name: ClassVar[str]
    label: ClassVar[str]  # in tables and pictures
    colour: ClassVar[str] = (
        "#999999"  # of its lines, `#rrggbb`; the registered ones differ for colour-blind readers too
    )
    marker: ClassVar[str] = "."  # of its points, as matplotlib names it
    extends: ClassVar[bool] = True  # whether it is for inputs beyond the window
    # The rotary schemes (`rope_type`) for which it is defined, and why not for others; None: for all whose frequencies
    # are fixed up to the window.
    rope_types: ClassVar[tuple[str, ...] | None] = None
    rope_types_reason: ClassVar[str] = ""

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """Parameters with which the method reads `target` tokens from a window of W, both in tokens."""
        return {}

    def check_window(self, window: int) -> None:
        """Raise ValueError if the parameters make no sense for a window of W tokens."""
        return

    @abstractmethod
    def reach(self, window: int) -> float:
        """The longest input, in tokens, whose distances the method keeps within the window."""

    def remedy(self, window: int, target_length: int) -> str:
        """What to change so that the method reaches the target."""
        return f"set a factor of at least {math.ceil(1000 * target_length / window) / 1000}"

    @abstractmethod
    def segments(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """Bands of queries past ... length - 1 on keys 0 ... length - 1."""

    def is_plain(self, rope: Rope, length: int) -> bool:
        """Whether `length` tokens get exactly the stock model's attention."""
        return False

    def is_causal(self) -> bool:
        """Whether a token's logits depend on its prefix alone, wherever a prompt is cut.

        Then prefixes can be cached and shared, prompts fed in pieces, and several tokens verified at once.
        """
        return False

    def noise(self, seed: int) -> Noise | None:
        """The noise that the method adds to logits."""
        return None


def query_indices(past: int, length: int) -> Tensor:
    """Indices of queries past ... length - 1, (T,) int64."""
    return torch.arange(past, length)


def one_band(
    rope: Rope, frequencies: Frequencies, past: int, length: int, scaling: float | None = None
) -> list[Segment]:
    """The stock model's band: positions i and j. scaling: factor on cos and sin, the model's own if None."""
    i = query_indices(past, length)
    factor = rope.scaling if scaling is None else scaling
    band = Band(frequencies, i.double(), TRUE_POSITIONS, torch.zeros_like(i), i + 1, query_scale=factor**2)
    return [Segment(past, length, (band,))]


def factor_for(window: int, target: int) -> dict[str, int | float]:
    """The smallest factor that reaches the target."""
    factor = max(1.0, target / window)
    return {"factor": int(factor) if factor.is_integer() else factor}


def reach_of_factor(window: int, factor: float) -> int:
    """W * factor in whole tokens; the margin keeps 3000 * 1.1 from falling to 3299."""
    return math.floor(window * factor + 1e-6)
