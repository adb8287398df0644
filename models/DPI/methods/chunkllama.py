"""ChunkLlama (dual chunk attention): keys at positions within their chunk, queries by which chunk they look at
(2402.17463)."""

import math
from typing import Any, ClassVar

from pydantic import Field

from models.DPI.attention.bands import Segment
from models.DPI.attention.tables import KeyPositions
from models.DPI.methods.base import Rope, Tokens, UnboundedMethod, query_indices, segment_of


class ChunkLlama(UnboundedMethod):
    """local_window: 3W//4 minus it is the chunk; W//16 if not given. mscale: growth of cos and sin beyond W.

    The defaults are those that GALI's authors ran; ChunkLlama's own code also has W//8 and 0.05.
    """

    name: ClassVar[str] = "repro_chunkllama"
    label: ClassVar[str] = "ChunkLlama"
    colour: ClassVar[str] = "#009E73"
    marker: ClassVar[str] = "^"
    in_paper: ClassVar[bool] = True

    local_window: Tokens | None = None
    mscale: float = Field(default=0.1, ge=0.0, le=1e6)

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """What GALI's authors ran."""
        return {"local_window": max(1, window // 16), "mscale": 0.1}

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """Both files of its authors: a local window of W/16 or W/8, a growth of 0.1 or 0.05."""
        return [
            {"local_window": max(1, window // part), "mscale": mscale} for part in (16, 8) for mscale in (0.1, 0.05)
        ]

    def check_window(self, window: int) -> None:
        """The chunk, 3W//4 - local_window, must hold a token."""
        bound = 3 * window // 4
        if self._local_window(window) >= bound:
            raise ValueError(
                f"local_window = {self.local_window} must be smaller than {bound}, three quarters of the window"
            )

    def _local_window(self, window: int) -> int:
        return window // 16 if self.local_window is None else self.local_window

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """Three bands: older chunks, the previous chunk, the query's own."""
        furthest = 3 * rope.window // 4
        chunk = furthest - self._local_window(rope.window)
        m = self.mscale * math.log(length / rope.window) + 1 if length > rope.window else 1.0
        i = query_indices(past, length)
        own = i - i % chunk  # first key of the query's chunk
        previous = (own - chunk).clamp(min=0)
        keys = KeyPositions(period=chunk)
        regions = (
            ((i * 0 + 2 * chunk - 1).clamp(max=furthest), keys, previous * 0, previous),
            ((i % chunk + chunk).clamp(max=furthest), keys, previous, own),
            (i % chunk, keys, own, i + 1),
        )
        return segment_of(rope, past, length, *regions, scale=m**2)
