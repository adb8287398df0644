"""NTK-aware scaling: another base, so that slow frequencies become slower and fast ones stay (bloc97, 2023).

Static: theta * factor ** (d / (d - 2)) at every length. Dynamic: beyond the window, with
factor * n / W - factor + 1 in place of the factor, n the tokens so far. Here that is a pure function of n: all keys
rotate at the current base, unlike implementations that keep early keys at an older one.

On a scaled scheme the new base takes the place of the old one in the scheme's own formula, and all else of it stays.
With b = theta * factor ** (d / (d - 2)) and f_i = b ** (-2i / d):
linear: f_i / s. llama3: f_i / s for wavelengths 2 pi / f_i beyond L / low_freq_factor, f_i for those below
L / high_freq_factor, between them (1 - t) f_i / s + t f_i with t = (L f_i / 2 pi - low) / (high - low). yarn:
f_i / s * r_i + f_i (1 - r_i), the ramp r_i between the dimensions that make beta_fast and beta_slow turns within L at
the new base. dynamic, within its length: f_i. (s: the scheme's factor; L: its original_max_position_embeddings.)
"""

from typing import Any, ClassVar

from models.DPI.attention.bands import Segment
from models.DPI.attention.tables import Frequencies
from models.DPI.methods.base import FactorMethod, Rope, one_band


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


class NTK(_ChangedBase):
    """factor: how many windows to reach, W * factor >= target."""

    name: ClassVar[str] = "repro_ntk"
    label: ClassVar[str] = "NTK"
    colour: ClassVar[str] = "#E69F00"
    marker: ClassVar[str] = "D"
    causal: ClassVar[bool] = True

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """One band at true positions, other frequencies."""
        return one_band(rope, _frequencies(rope, self.factor), past, length)


class DynamicNTK(_ChangedBase):
    """factor: as for NTK; the base grows with the input."""

    name: ClassVar[str] = "repro_dynamic_ntk"
    label: ClassVar[str] = "Dyn-NTK"
    colour: ClassVar[str] = "#56B4E9"
    marker: ClassVar[str] = "v"

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """One band at true positions, frequencies of the length so far."""
        if length <= rope.window:
            return one_band(rope, rope.frequencies, past, length)
        return one_band(rope, _frequencies(rope, self.factor * length / rope.window - self.factor + 1), past, length)

    def is_plain(self, rope: Rope, length: int) -> bool:
        """Within the window."""
        return length <= rope.window


def _frequencies(rope: Rope, factor: float) -> Frequencies:
    """Of the scheme at theta * factor ** (d / (d - 2))."""
    theta, d = rope.theta, rope.rotary_dim
    assert theta is not None
    return rope.derived(("ntk", factor), lambda: rope.frequencies_at(theta * factor ** (d / (d - 2))))
