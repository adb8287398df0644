"""NTK-aware scaling: another base, so that slow frequencies become slower and fast ones stay (bloc97, 2023).

Static: theta * factor ** (d / (d - 2)) at every length. Dynamic: beyond the window, with
factor * n / W - factor + 1 in place of the factor, n the tokens so far. Here that is a pure function of n: all keys
rotate at the current base, unlike implementations that keep early keys at an older one.
"""

from typing import ClassVar

from models.DPI.attention.bands import Segment
from models.DPI.attention.tables import Frequencies
from models.DPI.methods.base import FactorMethod, Rope, frequencies_of, one_band


class NTK(FactorMethod):
    """factor: how many windows to reach, W * factor >= target."""

    name: ClassVar[str] = "repro_ntk"
    label: ClassVar[str] = "NTK"
    colour: ClassVar[str] = "#E69F00"
    marker: ClassVar[str] = "D"
    needs_theta: ClassVar[bool] = True
    in_paper: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """One band at true positions, other frequencies."""
        return one_band(rope, _frequencies(rope, self.factor), past, length)


class DynamicNTK(FactorMethod):
    """factor: as for NTK; the base grows with the input."""

    name: ClassVar[str] = "repro_dynamic_ntk"
    label: ClassVar[str] = "Dyn-NTK"
    colour: ClassVar[str] = "#56B4E9"
    marker: ClassVar[str] = "v"
    needs_theta: ClassVar[bool] = True
    in_paper: ClassVar[bool] = True

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """One band at true positions, frequencies of the length so far."""
        if length <= rope.window:
            return one_band(rope, rope.frequencies, past, length)
        return one_band(rope, _frequencies(rope, self.factor * length / rope.window - self.factor + 1), past, length)

    def is_plain(self, rope: Rope, length: int) -> bool:
        """Within the window."""
        return length <= rope.window


def _frequencies(rope: Rope, factor: float) -> Frequencies:
    """Of theta * factor ** (d / (d - 2))."""
    theta, d = rope.theta, rope.rotary_dim
    assert theta is not None
    return rope.derived(("ntk", factor), lambda: frequencies_of(theta * factor ** (d / (d - 2)), d))
