"""Piecewise linear distances, this project's own: exact below the first edge, growing by 1 / scale b behind edge b."""

import math
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from models.DPI.attention.bands import Segment
from models.DPI.methods import base


class MultiScale(base.Method):
    """edges: ascending distances. scales: one behind each edge, none smaller than the one before."""

    name: ClassVar[str] = "multi_scale"
    label: ClassVar[str] = "multi-scale"
    colour: ClassVar[str] = "#14D6C8"
    marker: ClassVar[str] = "$M$"
    causal: ClassVar[bool] = True

    edges: Annotated[tuple[base.Tokens, ...], Field(min_length=1, max_length=7, strict=False)]
    scales: Annotated[tuple[base.Scale, ...], Field(min_length=1, max_length=7, strict=False)]

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """Exact to W/4, halved to 3W/4, then the smallest whole scale that reaches."""
        first = max(1, window // 4)
        last = max(first + 1, 3 * window // 4)
        return {"edges": [first, last], "scales": [2, max(2, -(2 * (target - last) // -(2 * window - first - last)))]}

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """The default, and one that gets coarse early, with and without YaRN's temperature."""
        first, last = max(1, window // 4), max(2, window // 2)
        shown = first + (last - first) / 2
        coarse = max(8, math.ceil((target - last) / (window - shown)))
        early = {"edges": [first, last], "scales": [2, coarse]}
        return [cls.params_for(window, target), early, {**early, "temperature": "yarn"}]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if len(self.edges) != len(self.scales):
            raise ValueError(f"{len(self.edges)} edges and {len(self.scales)} scales; give one scale for each edge")
        base.check_ascending("edges", self.edges)
        base.check_ascending("scales", self.scales, strictly=False)
        return self

    def check_window(self, window: int) -> None:
        """The last edge is shown within the window."""
        if self._shown >= window:
            said = f"edges = {list(self.edges)}: the last is shown at distance {self._shown:g}, which must be smaller"
            raise ValueError(f"{said} than the model's window of {window} tokens")

    def reach(self, window: int) -> float:
        """e + (W - D(e)) * scale, with e the last edge and D(e) the distance that it is shown at."""
        return base.reach_of_factor(window - self._shown, self.scales[-1]) + self.edges[-1]

    def remedy(self, window: int, target_length: int) -> str:
        """The smallest last scale that reaches."""
        needed = (target_length - self.edges[-1]) / (window - self._shown)
        return f"set the last scale to {base.at_least(needed)}"

    def layout(self, rope: base.Rope, past: int, length: int) -> list[Segment]:
        """A band between each two edges."""
        return base.piecewise(rope, past, length, self.edges, self.scales)

    @property
    def _shown(self) -> float:
        """D(e)."""
        return base.shown_at(self.edges, self.scales, self.edges[-1])
