"""SelfExtend: neighbours at true distances, the rest at floored group distances (2401.01325)."""

from typing import Any, ClassVar

import torch
from pydantic import Field

from models.DPI.attention.bands import Segment
from models.DPI.attention.tables import KeyPositions
from models.DPI.methods.base import MAX_TOKENS, NeighbourMethod, Rope, query_indices, reach_of_factor

# (G, w) by window and target, as GALI's authors give them in their configuration.
_PUBLISHED = {(8192, 16384): (3, 4096), (8192, 32768): (5, 2048)}


class SelfExtend(NeighbourMethod):
    """group_size: G, tokens that share a position, a whole number or not. window_size: w, smaller distances stay exact.

    Reaches (W - w) * G + w tokens.
    """

    name: ClassVar[str] = "repro_se"
    label: ClassVar[str] = "SelfExtend"
    colour: ClassVar[str] = "#0072B2"
    marker: ClassVar[str] = "s"
    in_paper: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    group_size: int | float = Field(ge=1, le=MAX_TOKENS)

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """The published ones, else half a window of neighbours and the smallest group that reaches."""
        neighbours = max(1, window // 2)
        default = smallest_group(window, neighbours, target), neighbours
        group, neighbours = _PUBLISHED.get((window, target), default)
        return {"group_size": group, "window_size": neighbours}

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """Neighbours over W/2, W/4 and W/8, each with the smallest group that reaches, beside the published ones."""
        widths = [max(1, window // part) for part in (2, 4, 8)]
        found = [{"group_size": smallest_group(window, w, target), "window_size": w} for w in widths]
        default = cls.params_for(window, target)
        return [default, *(params for params in found if params != default)]

    def reach(self, window: int) -> float:
        """(W - w) * G + w."""
        return reach_of_factor(window - self.window_size, self.group_size) + self.window_size

    def remedy(self, window: int, target_length: int) -> str:
        """The smallest group that reaches."""
        group = smallest_group(window, self.window_size, target_length)
        return f"(window - window_size) * group_size + window_size must reach it, as group_size = {group} does"

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """Far keys at group positions, near keys at true ones."""
        i, w = query_indices(past, length), self.window_size
        groups = KeyPositions(stretch=self.group_size, floor=True)
        far_positions = groups(i) + w - groups(torch.tensor([w]))
        return self.near_and_far(rope, past, length, far_positions, groups)


def smallest_group(window: int, window_size: int, target: int) -> int:
    """The smallest G with (W - w) * G + w >= target."""
    return max(1, -(-(target - window_size) // (window - window_size)))
