"""SelfExtend: neighbours at true distances, the rest at floored group distances (2401.01325)."""

from typing import Any, ClassVar

from models.DPI.attention.bands import Band, Segment
from models.DPI.attention.tables import KeyPositions
from models.DPI.methods.base import TRUE_POSITIONS, Method, Rope, Tokens, query_indices

# (G, w) by window and target, as GALI's authors give them in their configuration.
_PUBLISHED = {(8192, 16384): (3, 4096), (8192, 32768): (5, 2048)}


class SelfExtend(Method):
    """group_size: G, tokens that share a position. window_size: w, distances below it stay exact.

    Reaches (W - w) * G + w tokens.
    """

    name: ClassVar[str] = "repro_se"
    label: ClassVar[str] = "SelfExtend"
    colour: ClassVar[str] = "#0072B2"
    marker: ClassVar[str] = "s"

    group_size: Tokens
    window_size: Tokens

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """The published ones, else half a window of neighbours and the smallest group that reaches."""
        neighbours = max(1, window // 2)
        default = smallest_group(window, neighbours, target), neighbours
        group, neighbours = _PUBLISHED.get((window, target), default)
        return {"group_size": group, "window_size": neighbours}

    def check_window(self, window: int) -> None:
        """w must leave room for groups."""
        if self.window_size >= window:
            raise ValueError(
                f"window_size = {self.window_size} must be smaller than the model's window of {window} tokens"
            )

    def reach(self, window: int) -> float:
        """(W - w) * G + w."""
        return (window - self.window_size) * self.group_size + self.window_size

    def remedy(self, window: int, target_length: int) -> str:
        """The smallest group that reaches."""
        group = smallest_group(window, self.window_size, target_length)
        return f"(window - window_size) * group_size + window_size must reach it, as group_size = {group} does"

    def is_causal(self) -> bool:
        """Positions depend on query and key alone."""
        return True

    def segments(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """Far keys at group positions, near keys at true ones."""
        i = query_indices(past, length)
        near = (i - self.window_size + 1).clamp(min=0)  # the first key with i - j < w
        scale = rope.scaling**2
        far_positions = i // self.group_size + self.window_size - self.window_size // self.group_size
        groups = KeyPositions(stretch=self.group_size, floor=True)
        bands = (
            Band(rope.frequencies, far_positions.double(), groups, near * 0, near, query_scale=scale),
            Band(rope.frequencies, i.double(), TRUE_POSITIONS, near, i + 1, query_scale=scale),
        )
        return [Segment(past, length, bands)]


def smallest_group(window: int, window_size: int, target: int) -> int:
    """The smallest G with (W - w) * G + w >= target."""
    return max(1, -(-(target - window_size) // (window - window_size)))
