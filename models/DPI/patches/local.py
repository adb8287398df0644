"""Layers that attend locally, over bands: for families whose stock attention forms all of a layer's logits."""

import math
from typing import ClassVar

from models.DPI.attention.bands import Band, Plan, Segment
from models.DPI.methods.base import TRUE_POSITIONS, Method, Rope, Tokens, query_indices
from models.DPI.planning import Padding, make_plan


class LastTokens(Method):
    """The model's own positions; a query sees itself and the `size` - 1 keys before it."""

    name: ClassVar[str] = "local"
    label: ClassVar[str] = "local"

    size: Tokens

    def reach(self, window: int) -> float:
        """Unbounded: no distance is longer than `size`."""
        return math.inf

    def segments(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """One band along the diagonal."""
        i = query_indices(past, length)
        start = (i - self.size + 1).clamp(min=0)
        return [
            Segment(past, length, (Band(rope.frequencies, i.double(), TRUE_POSITIONS, start, i + 1, rope.scaling**2),))
        ]


def local_plan(rope: Rope, padding: Padding, held: int, size: int) -> Plan:
    """The plan of a local layer whose cache and pass hold the last `held` keys. Positions count from the first of them,
    which changes no distance.
    """
    dropped = padding.past + padding.new - held
    spans = None
    if padding.spans is not None:
        spans = tuple(
            (max(left - dropped, 0), max(left + length - dropped, 0) - max(left - dropped, 0))
            for left, length in padding.spans
        )
    return make_plan(
        LastTokens(size=size), rope, Padding(spans, held - padding.new, padding.new, padding.batch_size), 0
    )
