"""The model as it is: no extension. The paper's lower baseline."""

import math
from typing import ClassVar

from models.DPI.attention.bands import Segment
from models.DPI.methods.base import Method, Rope, one_band


class Original(Method):
    """No parameters but the temperature."""

    name: ClassVar[str] = "repro_original"
    label: ClassVar[str] = "original"
    colour: ClassVar[str] = "#4D4D4D"
    marker: ClassVar[str] = "X"
    in_paper: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    def reach(self, window: int) -> float:
        """Unbounded, as the paper measures it beyond its window, where it breaks."""
        return math.inf

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """One band at true positions."""
        return one_band(rope, rope.frequencies, past, length)

    def is_plain(self, rope: Rope, length: int) -> bool:
        """Without a temperature."""
        return self.temperature == "none"
