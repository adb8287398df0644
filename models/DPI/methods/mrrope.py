"""MrRoPE (2601.22181) and TailSpline (unpublished, 2026): other ramps between fast and slow frequencies than YaRN's.

Dimensions l and h are YaRN's, N = h - l, q = i - l between 0 and N. The frequency theta_i is multiplied by s ** -e(q):
Pro: e = q (q + 1) / (N (N + 1)). Uni: q / N. TailSpline: q (3 N^2 + 3 N + 1 - q^2) / (N (N + 1) (2 N + 1)).
Cosines and sines are multiplied by 0.1 ln s + 1. Nothing in their authors' code is known to differ.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from models.DPI.attention.bands import Segment
from models.DPI.methods.base import FactorMethod, Rope, Temperature, one_band
from models.DPI.methods.yarn import YaRN, ramp


class MrRoPE(FactorMethod):
    """factor: s, how many windows to reach, W * factor >= target. variant: "pro" or "uni"."""

    name: ClassVar[str] = "mrrope"
    label: ClassVar[str] = "MrRoPE"
    colour: ClassVar[str] = "#D400D4"
    marker: ClassVar[str] = "H"
    rope_types: ClassVar[tuple[str, ...] | None] = YaRN.rope_types
    rope_types_reason: ClassVar[str] = YaRN.rope_types_reason
    causal: ClassVar[bool] = True

    variant: Literal["pro", "uni"] = "pro"
    temperature: Temperature = "yarn"

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """Both variants, and Pro without temperature."""
        default = cls.params_for(window, target)
        return [default, {**default, "variant": "uni"}, {**default, "temperature": "none"}]

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """One band at true positions, slower frequencies."""
        key = (self.name, self.variant, self.factor)
        exponent = _pro if self.variant == "pro" else _uni
        return one_band(rope, rope.derived(key, lambda: slowed(rope, self.factor, exponent)), past, length)


def slowed(rope: Rope, factor: float, exponent: Callable[[Tensor, int], Tensor]) -> Tensor:
    """theta_i * s ** -e(q), (rotary_dim/2,). exponent: of q (fp64) and N; 0 at q = 0, 1 at q = N."""
    low, high = ramp(rope)
    i = torch.arange(rope.rotary_dim // 2)
    if high <= low:
        e = (i > low).double()
    else:
        e = exponent((i - low).clamp(0, high - low).double(), high - low)
    return rope.inv_freq * (factor**-e).float()


def _pro(q: Tensor, n: int) -> Tensor:
    return q * (q + 1) / (n * (n + 1))


def _uni(q: Tensor, n: int) -> Tensor:
    return q / n
