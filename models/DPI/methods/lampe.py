"""LaMPE: far positions are squeezed into a number of positions that grows with the input as a sigmoid (2508.02308).

i - j <= h: i and j. Otherwise floor(i r) + h - floor(h r) - 1 and floor(j r), with r = m / (n - 1) and, for n tokens,
m = floor(L / (1 + exp(-(a n + b)))). In its authors' code the diagonal i - j = h is in both, here in the first.
"""

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from models.DPI.attention.bands import Segment
from models.DPI.attention.tables import KeyPositions
from models.DPI.methods import base

# (a, b, L) as fitted for Llama-2, Llama-3 and Llama-3.1, by their windows.
_FITTED = {4096: (8.673e-5, -0.648, 2489.1), 8192: (1.0493e-4, -2.4666, 6204.4), 131072: (4.505e-5, -2.7886, 82358.5)}


class LaMPE(base.UnboundedMethod):
    """local_window: h. curve: (a, b, L), L + h at most W; by default the fit for W, or Llama-3's in units of W."""

    name: ClassVar[str] = "lampe"
    label: ClassVar[str] = "LaMPE"
    colour: ClassVar[str] = "#3322AA"
    marker: ClassVar[str] = "8"
    plain_within_window: ClassVar[bool] = True

    local_window: base.Tokens = 512
    curve: Annotated[tuple[base.Coefficient, base.Coefficient, base.Coefficient], Field(strict=False)] | None = None
    temperature: base.Temperature = base.YARN_OF_TWO

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """The paper's h, less in a small window."""
        return {"local_window": min(512, max(1, window // 8))}

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """The default, and maps onto a fixed number of positions, m = W/2 or 3W/4, with and without temperature."""

        def fixed(m: int, h: int, **more: Any) -> dict[str, Any]:
            return {"local_window": max(1, h), "curve": [0.0, 50.0, float(max(1, m))], **more}

        default = cls.params_for(window, target)
        return [
            default,
            fixed(window // 2, default["local_window"]),
            fixed(window // 2, window // 4, temperature="none"),
            fixed(3 * window // 4, window // 4, temperature="none"),
        ]

    def check_window(self, window: int) -> None:
        """All positions fit."""
        limit = self._curve(window)[2]
        if not 1 <= limit <= window - self.local_window:
            said = f"local_window = {self.local_window} and the curve's limit {limit:g}, which must be at least 1"
            raise ValueError(f"{said}, must together be at most the model's window of {window} tokens")

    def layout(self, rope: base.Rope, past: int, length: int) -> list[Segment]:
        """Far keys at squeezed positions, near keys at true ones."""
        i, h = base.query_indices(past, length), self.local_window
        keys = KeyPositions(times=self._positions(rope.window, length), stretch=max(1, length - 1), floor=True)
        near = i * 0 if self.is_plain(rope, length) else i - h
        return base.near_and_far(rope, past, length, near, keys(i) + h - keys(torch.tensor([h])) - 1, keys)

    def _positions(self, window: int, length: int) -> int:
        """m of n tokens."""
        a, b, limit = self._curve(window)
        return math.floor(limit / (1 + math.exp(min(-(a * length + b), 700.0))))

    def _curve(self, window: int) -> tuple[float, float, float]:
        a, b, limit = _FITTED[8192]
        return self.curve or _FITTED.get(window, (a * 8192 / window, b, limit * window / 8192))
