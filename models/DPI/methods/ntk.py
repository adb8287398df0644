"""NTK-aware scaling: another base, so that slow frequencies become slower and fast ones stay (bloc97, 2023).

Static: theta * factor ** (d / (d - 2)) at every length. Dynamic: beyond the window, with
factor * n / W - factor + 1 in place of the factor, n the tokens so far. Here that is a pure function of n: all keys
rotate at the current base, unlike implementations that keep early keys at an older one.
On a scaled scheme the new base takes the old one's place in the scheme's own formula (`Rope.at_base`).
"""

from typing import Any, ClassVar

from torch import Tensor

from models.DPI.attention.bands import Segment
from models.DPI.methods.base import FactorMethod, FrequencyMethod, Rope, one_band


class _ChangedBase(FactorMethod):
    """What both have in common. factor: how many windows to reach, W * factor >= target."""

    rope_types: ClassVar[tuple[str, ...] | None] = ("default", "linear", "llama3", "yarn", "dynamic")
    rope_types_reason: ClassVar[str] = "its frequencies were chosen one by one, not by the base that NTK changes"
    in_paper: ClassVar[bool] = True

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """Factors up to twice what reaches: a base that is just large enough leaves the slowest frequencies short."""
        factor = cls.params_for(window, target)["factor"]
        return [{"factor": share * factor} for share in (1, 1.5, 2)]

    def _at(self, rope: Rope, factor: float) -> Tensor:
        """The scheme's frequencies at theta * factor ** (d / (d - 2))."""
        theta, d = rope.theta, rope.rotary_dim
        assert theta is not None
        return rope.frequencies_at(theta * factor ** (d / (d - 2)))


class NTK(_ChangedBase, FrequencyMethod):
    """factor: how many windows to reach, W * factor >= target."""

    name: ClassVar[str] = "repro_ntk"
    label: ClassVar[str] = "NTK"
    colour: ClassVar[str] = "#E69F00"
    marker: ClassVar[str] = "D"
    causal: ClassVar[bool] = True

    def inv_freq(self, rope: Rope) -> Tensor:
        """Of the base for the factor."""
        return self._at(rope, self.factor)


class DynamicNTK(_ChangedBase):
    """factor: as for NTK; the base grows with the input."""

    name: ClassVar[str] = "repro_dynamic_ntk"
    label: ClassVar[str] = "Dyn-NTK"
    colour: ClassVar[str] = "#56B4E9"
    marker: ClassVar[str] = "v"
    plain_within_window: ClassVar[bool] = True

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """One band at true positions, frequencies of the length so far."""
        if length <= rope.window:
            return one_band(rope, rope.frequencies, past, length)
        factor = self.factor * length / rope.window - self.factor + 1
        frequencies = rope.derived((self.name, factor), lambda: self._at(rope, factor))
        return one_band(rope, frequencies, past, length)
