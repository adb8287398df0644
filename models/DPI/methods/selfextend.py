"""SelfExtend: neighbours at true distances, the rest at floored group distances (2401.01325)."""

from typing import ClassVar

from pydantic import Field

from models.DPI.attention.bands import Band, Segment
from models.DPI.attention.tables import KeyPositions
from models.DPI.methods.base import TRUE_POSITIONS, Method, Rope, causal


class SelfExtend(Method):
    """group_size: G, tokens that share a position. window_size: w, distances below it stay exact.

    Reaches (W - w) * G + w tokens.
    """

    name: ClassVar[str] = "repro_se"

    group_size: int = Field(ge=1)
    window_size: int = Field(ge=1)

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
        group = -(-(target_length - self.window_size) // (window - self.window_size))
        return f"(window - window_size) * group_size + window_size must reach it, as group_size = {group} does"

    def segments(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """Far keys at group positions, near keys at true ones."""
        i = causal(past, length)
        near = (i - self.window_size + 1).clamp(min=0)  # the first key with i - j < w
        scale = rope.scaling**2
        far_positions = i // self.group_size + self.window_size - self.window_size // self.group_size
        groups = KeyPositions(stretch=self.group_size, floor=True)
        bands = (
            Band(rope.frequencies, far_positions.double(), groups, near * 0, near, query_scale=scale),
            Band(rope.frequencies, i.double(), TRUE_POSITIONS, near, i + 1, query_scale=scale),
        )
        return [Segment(past, length, bands)]
