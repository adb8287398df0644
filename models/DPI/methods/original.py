"""The model as it is: no extension. The paper's lower baseline."""

import math
from typing import ClassVar

from models.DPI.attention.bands import Segment
from models.DPI.methods.base import Method, Rope, one_band


class Original(Method):
    """No parameters."""

    name: ClassVar[str] = "repro_original"
    label: ClassVar[str] = "original"
    colour: ClassVar[str] = "#4D4D4D"
    marker: ClassVar[str] = "X"
    extends: ClassVar[bool] = False
    rope_types: ClassVar[tuple[str, ...] | None] = ("default", "linear", "llama3", "yarn", "proportional")
    rope_types_reason: ClassVar[str] = (
        "beyond the window the model's own frequencies change with the input; run the model without a method"
    )

    def reach(self, window: int) -> float:
        """Unbounded, as the paper measures it beyond its window, where it breaks."""
        return math.inf

    def is_causal(self) -> bool:
        """As every causal language model."""
        return True

    def segments(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """One band at true positions."""
        return one_band(rope, rope.frequencies, past, length)

    def is_plain(self, rope: Rope, length: int) -> bool:
        """Always."""
        return True
