"""What a method is: validated parameters, and the bands they mean. Pure: no model, no transformers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.DPI.attention.bands import Band, Segment
from models.DPI.attention.noise import Noise
from models.DPI.attention.tables import Frequencies, KeyPositions, Stretch

TRUE_POSITIONS = KeyPositions()

MAX_TOKENS = 1 << 40
"""Far beyond any model, and far below where positions in fp64 lose their fractions."""
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Factor = Annotated[float, Field(ge=1.0, le=1e9)]
"""Its powers stay far from where fp64 overflows."""
Coefficient = Annotated[float, Field(ge=-1e9, le=1e9)]
Scale = Annotated[int | float, Field(ge=1, le=1_000_000_000)]
"""A factor that stays a whole number where one is given: floors are exact then."""
YARN_OF_TWO = (0.1 * math.log(2) + 1) ** 2
"""What cosines and sines of queries and keys times 0.1 ln 2 + 1 multiply logits by."""
TokensOrShare = Annotated[int, Field(ge=1, le=MAX_TOKENS)] | Annotated[float, Field(gt=0.0, lt=1.0)]
"""A number of tokens (int), or a share of those that are fed (float)."""
Temperature = Literal["none", "yarn", "logn"] | Annotated[float, Field(gt=0.0, le=1e3)]

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
    """Parameters of one method. Unknown and mistyped ones are refused when it is built.

    temperature: what logits are multiplied by. "none": 1. A number: itself. "logn": max(1, ln(i + 1) / ln W) for query
        i. "yarn": cosines and sines of queries and keys by 0.1 ln s + 1, s the method's factor, or where it has none
        the windows so far, max(1, (i + 1) / W). Inputs that a method leaves to the stock model stay as they are.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    name: ClassVar[str]
    label: ClassVar[str]  # in tables and pictures
    colour: ClassVar[str] = (
        "#999999"  # of its lines, `#rrggbb`; those of the paper's methods differ for colour-blind readers too
    )
    marker: ClassVar[str] = "."  # of its points, as matplotlib names it
    extends: ClassVar[bool] = True  # whether it is for inputs beyond the window
    in_paper: ClassVar[bool] = False  # whether GALI's paper has it; sweeps, the demo and the notebook run those
    # The rotary schemes (`rope_type`) for which it is defined, and why not for others; None: for all whose frequencies
    # are fixed up to the window.
    rope_types: ClassVar[tuple[str, ...] | None] = None
    rope_types_reason: ClassVar[str] = ""

    causal: ClassVar[bool] = False  # what `is_causal` says where it depends on no parameter
    plain_within_window: ClassVar[bool] = False  # whether inputs of up to W tokens are left to the stock model

    temperature: Temperature = "none"

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """Parameters with which the method reads `target` tokens from a window of W, both in tokens."""
        return {}

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """Parameters worth trying on a model, what `compare.py --tune` chooses from; `params_for` is among them."""
        return [cls.params_for(window, target)]

    @classmethod
    def tuning_windows(cls, window: int) -> list[int]:
        """Windows, in tokens, worth trying for a model of W: some methods gain from a smaller one."""
        return [window]

    @classmethod
    def automatic(cls, window: int) -> dict[str, int]:
        """What "auto" stands for, by parameter, in a window of W tokens.

        Where there is something, W itself may be "auto": the model's effective window (`models.DPI.calibration`).
        """
        return {}

    def check_window(self, window: int) -> None:
        """Raise ValueError if the parameters make no sense for a window of W tokens."""
        return

    @abstractmethod
    def reach(self, window: int) -> float:
        """The longest input, in tokens, whose distances the method keeps within the window."""

    def remedy(self, window: int, target_length: int) -> str:
        """What to change so that the method reaches the target."""
        return f"set a factor of {at_least(target_length / window)}"

    @abstractmethod
    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """Bands of queries past ... length - 1 on keys 0 ... length - 1, without the temperature."""

    def segments(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """Bands of queries past ... length - 1 on keys 0 ... length - 1."""
        found = self.layout(rope, past, length)
        if self.temperature == "none" or self.is_plain(rope, length):
            return found
        tempered = []
        for segment in found:
            rotary, whole = self._scales(rope, query_indices(segment.first, segment.last))
            tempered.append(replace(segment, bands=tuple(band.scaled(rotary, whole) for band in segment.bands)))
        return tempered

    def tempered_from(self, rope: Rope) -> int:
        """The first query whose logits a temperature that is a number multiplies."""
        return 0

    def windows(self) -> float | None:
        """s of YaRN's temperature, None where it grows with the input."""
        return None

    def _scales(self, rope: Rope, i: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """The temperature of queries i, (T,): factors on the part of the logits that rotates, and on all of it."""
        n = (i + 1).double()
        if self.temperature == "logn":
            return 1.0, (n.log() / math.log(max(rope.window, 2))).clamp(min=1.0)
        if self.temperature == "yarn":
            windows = self.windows()
            return yarn_temperature((n / rope.window).clamp(min=1.0) if windows is None else windows), 1.0
        assert not isinstance(self.temperature, str)
        first = self.tempered_from(rope)
        return 1.0, torch.ones_like(n).masked_fill(i >= first, self.temperature) if first else self.temperature

    def is_plain(self, rope: Rope, length: int) -> bool:
        """Whether `length` tokens get exactly the stock model's attention."""
        return self.plain_within_window and length <= rope.window

    def is_causal(self) -> bool:
        """Whether a token's logits depend on its prefix alone, wherever a prompt is cut.

        Then prefixes can be cached and shared, prompts fed in pieces, and several tokens verified at once.
        """
        return self.causal

    def noise(self, seed: int) -> Noise | None:
        """The noise that the method adds to logits."""
        return None


class UnboundedMethod(Method):
    """What keeps distances within the window however long the input is."""

    def reach(self, window: int) -> float:
        """Unbounded."""
        return math.inf


class FactorMethod(Method):
    """What reaches W * factor tokens. factor: how many windows to reach, W * factor >= target."""

    factor: Factor

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """The smallest factor that reaches."""
        return factor_for(window, target)

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """With the method's own temperature, and with none or YaRN's instead."""
        default = cls.params_for(window, target)
        other = "none" if cls.model_fields["temperature"].default == "yarn" else "yarn"
        return [default, {**default, "temperature": other}]

    def reach(self, window: int) -> float:
        """W * factor."""
        return reach_of_factor(window, self.factor)

    def windows(self) -> float | None:
        """The factor."""
        return self.factor


class FrequencyMethod(FactorMethod):
    """What leaves positions as they are and rotates at other frequencies."""

    @abstractmethod
    def inv_freq(self, rope: Rope) -> Tensor:
        """The frequencies, (rotary_dim/2,)."""

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """One band at true positions."""
        key = (self.name, *self.model_dump(exclude={"temperature"}).values())
        return one_band(rope, rope.derived(key, lambda: self.inv_freq(rope)), past, length)


class NeighbourMethod(Method):
    """What keeps distances below w exact. window_size: w, smaller than W."""

    window_size: Tokens

    def check_window(self, window: int) -> None:
        """w must leave room for farther distances."""
        check_smaller("window_size", self.window_size, window)

    def near_and_far(
        self, rope: Rope, past: int, length: int, far_positions: Tensor, far_keys: KeyPositions
    ) -> list[Segment]:
        """See the function; i - j < w is near."""
        near = query_indices(past, length) - self.window_size + 1
        return near_and_far(rope, past, length, near, far_positions, far_keys)


def in_tokens(value: int | float, length: int) -> int:
    """A number of tokens, or a share of n tokens."""
    return value if isinstance(value, int) else int(value * length)


def check_ascending(name: str, values: Sequence[float], *, strictly: bool = True) -> None:
    """Raise ValueError if a value is smaller than the one before it, or where `strictly`, not greater."""
    if any(a > b or (a == b and strictly) for a, b in pairwise(values)):
        raise ValueError(f"{name} = {list(values)} must ascend: distances get coarser with each edge")


def check_smaller(name: str, value: int, window: int) -> None:
    """Raise ValueError if a parameter in tokens is not smaller than W."""
    if value >= window:
        raise ValueError(f"{name} = {value} must be smaller than the model's window of {window} tokens")


def at_least(needed: float) -> str:
    """A bound in words, rounded up to three digits behind the point."""
    return f"at least {math.ceil(1000 * needed) / 1000}"


def yarn_temperature(windows: float | Tensor) -> Any:
    """(0.1 ln s + 1) ** 2 of s, a number or a tensor: what YaRN's cosines and sines multiply logits by."""
    logarithm = windows.log() if isinstance(windows, Tensor) else math.log(windows)
    return (0.1 * logarithm + 1.0) ** 2


def query_indices(past: int, length: int) -> Tensor:
    """Indices of queries past ... length - 1, (T,) int64."""
    return torch.arange(past, length)


def segment_of(
    rope: Rope,
    past: int,
    length: int,
    *regions: tuple[Tensor, KeyPositions, Tensor, Tensor],
    scale: float = 1.0,
    frequencies: Frequencies | None = None,
) -> list[Segment]:
    """One segment. regions: positions of the queries, those of the keys, and start and stop, as `Band` has them.

    scale: factor on the logits beside the scheme's own. frequencies: the scheme's own if None.
    """
    frequencies = rope.frequencies if frequencies is None else frequencies
    bands = (
        Band(frequencies, positions.double(), keys, start, stop, query_scale=scale * rope.scaling**2)
        for positions, keys, start, stop in regions
    )
    return [Segment(past, length, tuple(bands))]


def one_band(rope: Rope, frequencies: Frequencies, past: int, length: int) -> list[Segment]:
    """The stock model's band: positions i and j."""
    i = query_indices(past, length)
    return segment_of(rope, past, length, (i, TRUE_POSITIONS, i * 0, i + 1), frequencies=frequencies)


def near_and_far(
    rope: Rope, past: int, length: int, near: Tensor, far_positions: Tensor, far_keys: KeyPositions
) -> list[Segment]:
    """Two bands: keys from `near` (T,) on at true distances, those before it at positions of their own.

    far_positions: of the queries, (T,) or (T, rotary_dim/2).
    """
    i, near = query_indices(past, length), near.clamp(min=0)
    far = (far_positions, far_keys, near * 0, near)
    return segment_of(rope, past, length, far, (i, TRUE_POSITIONS, near, i + 1))


def shown_at(edges: Sequence[int], scales: Sequence[float], edge: int) -> float:
    """The distance that an edge is shown at where distances grow by 1 / scale b behind edge b, and by 1 before all."""
    nearer = [0, *(other for other in edges if other <= edge)]
    return sum((b - a) / scale for (a, b), scale in zip(pairwise(nearer), (1, *scales), strict=False))


def piecewise(rope: Rope, past: int, length: int, edges: Sequence[int], scales: Sequence[Stretch]) -> list[Segment]:
    """A band between each two edges of a piecewise linear map of distances, the farthest first. See `shown_at`."""
    i, starts = query_indices(past, length), (0, *edges)
    stops = [(i - edge + 1).clamp(min=0) for edge in starts]
    regions = [
        ((i - edge).double() / scale + shown_at(edges, scales, edge), KeyPositions(stretch=scale), start, stop)
        for edge, scale, start, stop in zip(starts, (1, *scales), [*stops[1:], i * 0], stops, strict=True)
    ]
    return segment_of(rope, past, length, *reversed(regions))


def factor_for(window: int, target: int) -> dict[str, int | float]:
    """The smallest factor that reaches the target."""
    factor = max(1.0, target / window)
    return {"factor": int(factor) if factor.is_integer() else factor}


def reach_of_factor(window: float, factor: float) -> int:
    """W * factor in whole tokens; the margin keeps 3000 * 1.1 from falling to 3299."""
    return math.floor(window * factor + 1e-6)
