"""Leaky ReRoPE: neighbours at true distances, farther ones grow more slowly (Jianlin Su, 2023; posts and code).

i - j < w: i and j. Otherwise (i + w (factor - 1)) / factor and j / factor: SelfExtend without its floors. Logits of
query i are multiplied by max(1, ln(i + 1) / ln W). Its author's code forms both matrices of logits and picks from them;
here they are two bands.
"""

from typing import Any, ClassVar

from models.DPI.attention.bands import Segment
from models.DPI.methods.base import (
    Factor,
    NeighbourMethod,
    Rope,
    Temperature,
    at_least,
    piecewise,
    reach_of_factor,
)


class LeakyReRoPE(NeighbourMethod):
    """window_size: w. factor: farther distances grow by 1 / factor; (W - w) * factor + w must reach the target."""

    name: ClassVar[str] = "leaky_rerope"
    label: ClassVar[str] = "Leaky ReRoPE"
    colour: ClassVar[str] = "#7799FF"
    marker: ClassVar[str] = "d"
    causal: ClassVar[bool] = True

    factor: Factor
    temperature: Temperature = "logn"

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """Half of the window at true distances, and the smallest factor that reaches."""
        w = max(1, window // 2)
        return {"window_size": w, "factor": max(1.0, (target - w) / max(1, window - w))}

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """Neighbours over W/2, W/4 and W/8, each with the smallest factor that reaches, and W/2 without temperature."""
        half = cls.params_for(window, target)
        widths = [max(1, window // part) for part in (4, 8)]
        others = [{"window_size": w, "factor": max(1.0, (target - w) / max(1, window - w))} for w in widths]
        return [half, *others, {**half, "temperature": "none"}]

    def reach(self, window: int) -> float:
        """(W - w) * factor + w: distances stay below W."""
        return reach_of_factor(window - self.window_size, self.factor) + self.window_size

    def remedy(self, window: int, target_length: int) -> str:
        """The smallest factor that reaches."""
        needed = (target_length - self.window_size) / (window - self.window_size)
        return f"set a factor of {at_least(needed)}"

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """Distances grow by 1 / factor behind w."""
        return piecewise(rope, past, length, (self.window_size,), (self.factor,))
