"""DPE: each group of frequencies has a scale of its own for far distances (2504.18857).

i - j < w: i and j. Otherwise, in group g, floor(i / s_g) + w - w / s_g and floor(j / s_g). Scales are found for a model
by retrieval trials (`tools/fit_dpe.py`). Its authors have, for Llama-3-8B at 8k to 128k, 2 8 2 8 32 32 32 4 in their
configuration and 4 4 2 16 32 32 16 128 in their README. Their code can leave all but 48 dimensions of a head at true
distances, those of largest |q| |k|: that takes tables per head and is left out.
"""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from models.DPI.attention.bands import Segment
from models.DPI.attention.tables import KeyPositions
from models.DPI.methods.base import NeighbourMethod, Rope, Scale, Tokens, query_indices, reach_of_factor


class DPE(NeighbourMethod):
    """scales: of equal groups of frequencies, fast to slow. window_size: w. The largest scale must reach the target."""

    name: ClassVar[str] = "dpe"
    label: ClassVar[str] = "DPE"
    colour: ClassVar[str] = "#CC4444"
    marker: ClassVar[str] = "h"
    causal: ClassVar[bool] = True

    scales: Annotated[tuple[Scale, ...], Field(min_length=1, max_length=64, strict=False)]
    window_size: Tokens = 1024

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """Without a fit: the windows to reach in the slow half of the frequencies, twice as many in the fast half."""
        slow = max(1, -(-target // window))
        fast = 1 if slow == 1 else 2 * slow
        return {"scales": [fast] * 4 + [slow] * 4, "window_size": min(1024, max(1, window // 8))}

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """Fast frequencies scaled twice as much as slow ones, or all alike, with neighbours over W/8 or W/4."""
        default = cls.params_for(window, target)
        slow = min(default["scales"])
        wider = max(1, window // 4)
        far = max(slow, -(-(target - wider) // max(1, window - wider)))
        return [
            default,
            {
                **default,
                "scales": [max(slow, -(-(target - default["window_size"]) // (window - default["window_size"])))] * 8,
            },
            {"scales": [2 * far] * 4 + [far] * 4, "window_size": wider},
        ]

    def reach(self, window: int) -> float:
        """(W - w) * max(scales) + w: beyond, no group's distances are within the window."""
        return reach_of_factor(window - self.window_size, max(self.scales)) + self.window_size

    def remedy(self, window: int, target_length: int) -> str:
        """The smallest scale that reaches."""
        return f"give a group {-(-(target_length - self.window_size) // (window - self.window_size))} at least"

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """Far keys at positions by frequency, near keys at true ones."""
        frequencies, w = rope.inv_freq.numel(), self.window_size
        scales = tuple(self.scales[f * len(self.scales) // frequencies] for f in range(frequencies))
        keys = KeyPositions(stretch=scales, floor=True)
        far = keys(query_indices(past, length)) + w - w / torch.tensor(scales, dtype=torch.float64)
        return self.near_and_far(rope, past, length, far, keys)
