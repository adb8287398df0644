"""StreamingLLM: the first keys and the last ones are seen, at positions within that cache, and no other (2309.17453).

Query i sees keys j < sinks at min(i, sinks + w - 1) and j, and the last w keys, its own among them, at true distances.
Its authors' code drops the keys between from the cache; here they stay, unseen, so memory grows with the input. Some of
their scripts drop after a step instead of before it, and see one key more.
"""

from typing import Any, ClassVar

import torch
from pydantic import Field

from models.DPI.attention.bands import Segment
from models.DPI.methods.base import MAX_TOKENS, TRUE_POSITIONS, Rope, Tokens, UnboundedMethod, query_indices, segment_of


class StreamingLLM(UnboundedMethod):
    """sinks: keys at the beginning that stay. window_size: w, the last keys. sinks + w must fit into W."""

    name: ClassVar[str] = "streaming_llm"
    label: ClassVar[str] = "StreamingLLM"
    colour: ClassVar[str] = "#AACC77"
    marker: ClassVar[str] = "*"
    causal: ClassVar[bool] = True

    sinks: int = Field(default=4, ge=0, le=MAX_TOKENS)
    window_size: Tokens

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """A cache of half the window."""
        sinks = min(4, window // 4)
        return {"sinks": sinks, "window_size": max(1, window // 2 - sinks)}

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """A cache of half the window, of three quarters and of all of it."""
        sinks = cls.params_for(window, target)["sinks"]
        return [{"sinks": sinks, "window_size": max(1, window * quarters // 4 - sinks)} for quarters in (2, 3, 4)]

    def check_window(self, window: int) -> None:
        """The cache must fit."""
        if self.sinks + self.window_size > window:
            raise ValueError(
                f"sinks + window_size = {self.sinks + self.window_size} must be at most the window of {window} tokens"
            )

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """Sinks, a gap, and the last keys."""
        i = query_indices(past, length)
        at_sinks = i.clamp(max=self.sinks + self.window_size - 1)
        stop = (i + 1).clamp(max=self.sinks)
        start = torch.maximum(i - self.window_size + 1, stop)
        sinks = (at_sinks, TRUE_POSITIONS, i * 0, stop)
        return segment_of(rope, past, length, sinks, (i, TRUE_POSITIONS, start, i + 1))
