"""Position interpolation: all positions are divided by a factor (2306.15595).

One band, i / factor and j / factor. Its authors' code divides in fp32; here positions and angles are fp64.
"""

from typing import ClassVar

import torch

from models.DPI.attention.bands import Band, Segment
from models.DPI.attention.tables import KeyPositions
from models.DPI.methods.base import FactorMethod, Rope, query_indices


class PI(FactorMethod):
    """factor: how many windows to reach, W * factor >= target."""

    name: ClassVar[str] = "pi"
    label: ClassVar[str] = "PI"
    colour: ClassVar[str] = "#771111"
    marker: ClassVar[str] = "<"
    causal: ClassVar[bool] = True

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """One band at divided positions."""
        i, keys = query_indices(past, length), KeyPositions(stretch=self.factor)
        band = Band(rope.frequencies, keys(i), keys, torch.zeros_like(i), i + 1, query_scale=rope.scaling**2)
        return [Segment(past, length, (band,))]
