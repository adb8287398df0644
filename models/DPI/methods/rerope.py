"""ReRoPE: neighbours at true distances, all others at one distance (Jianlin Su, 2023; posts and code, no paper).

i - j < w: i and j. Otherwise every distance is w. Logits of query i are multiplied by max(1, ln(i + 1) / ln W). Its
author's code forms both matrices of logits and picks from them; here they are two bands.
"""

import math
from typing import Any, ClassVar

from models.DPI.attention.bands import Segment
from models.DPI.attention.tables import KeyPositions
from models.DPI.methods.base import NeighbourMethod, Rope, Temperature, query_indices


class ReRoPE(NeighbourMethod):
    """window_size: w. Farther keys are all at distance w."""

    name: ClassVar[str] = "rerope"
    label: ClassVar[str] = "ReRoPE"
    colour: ClassVar[str] = "#0000FF"
    marker: ClassVar[str] = ">"
    causal: ClassVar[bool] = True

    temperature: Temperature = "logn"

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """Half of the window at true distances."""
        return {"window_size": max(1, window // 2)}

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """Half, a quarter and three quarters of the window at true distances, and half without temperature."""
        half = cls.params_for(window, target)
        others = [{"window_size": max(1, window * quarters // 4)} for quarters in (1, 3)]
        return [half, *others, {**half, "temperature": "none"}]

    def reach(self, window: int) -> float:
        """Unbounded: no distance is beyond w."""
        return math.inf

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """Far keys at 0 with the query at w, near keys at true positions."""
        at_w = query_indices(past, length) * 0 + self.window_size
        return self.near_and_far(rope, past, length, at_w, KeyPositions(period=1))
