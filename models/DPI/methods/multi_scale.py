"""A piecewise linear map of distances: exact near, coarser with each edge. This project's own, without a paper.

Distances below the first edge stay; behind edge b they grow by 1 / scale b. One edge: SelfExtend without its floors.
"""

import math
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from models.DPI.attention.bands import Band, Segment
from models.DPI.attention.tables import KeyPositions
from models.DPI.methods.base import Method, Rope, Scale, Tokens, query_indices, reach_of_factor


class MultiScale(Method):
    """edges: ascending distances. scales: one behind each edge, none smaller than the one before.

    Reaches e + (W - D(e)) * scale tokens, with e the last edge and D(e) the distance that is shown for it.
    """

    name: ClassVar[str] = "multi_scale"
    label: ClassVar[str] = "multi-scale"
    colour: ClassVar[str] = "#14D6C8"
    marker: ClassVar[str] = "$M$"
    causal: ClassVar[bool] = True

    edges: Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=7, strict=False)]
    scales: Annotated[tuple[Scale, ...], Field(min_length=1, max_length=7, strict=False)]

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
        for name, values in (("edges", self.edges), ("scales", self.scales)):
            if any(a > b or (a == b and name == "edges") for a, b in pairwise(values)):
                raise ValueError(f"{name} = {list(values)} must ascend: distances get coarser with each edge")
        return self

    def check_window(self, window: int) -> None:
        """The last edge is shown within the window."""
        if self._shown[-1] >= window:
            raise ValueError(
                f"edges = {list(self.edges)}: the last is shown at distance {self._shown[-1]:g}, which must be smaller "
                f"than the model's window of {window} tokens"
            )

    def reach(self, window: int) -> float:
        """Distances stay below W."""
        return reach_of_factor(window - self._shown[-1], self.scales[-1]) + self.edges[-1]

    def remedy(self, window: int, target_length: int) -> str:
        """The smallest last scale that reaches."""
        needed = (target_length - self.edges[-1]) / (window - self._shown[-1])
        return f"set the last scale to at least {math.ceil(1000 * needed) / 1000}"

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """A band between each two edges, the farthest first."""
        i, scale = query_indices(past, length), rope.scaling**2  # whole numbers: boundaries; positions are fp64
        bounds = [i + 1, *((i - edge + 1).clamp(min=0) for edge in self.edges), i * 0]
        parts = zip((0, *self.edges), (0.0, *self._shown), (1, *self.scales), pairwise(bounds), strict=True)
        bands = [
            Band(
                rope.frequencies,
                (i - edge).double() / stretch + shown,
                KeyPositions(stretch=stretch),
                start,
                stop,
                scale,
            )
            for edge, shown, stretch, (stop, start) in parts
        ]
        return [Segment(past, length, tuple(reversed(bands)))]

    @property
    def _shown(self) -> list[float]:
        """The distance that each edge is shown at."""
        found = [float(self.edges[0])]
        for (edge, after), scale in zip(pairwise(self.edges), self.scales, strict=False):
            found.append(found[-1] + (after - edge) / scale)
        return found
