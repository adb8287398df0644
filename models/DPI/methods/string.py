"""STRING: large distances are shifted down to ones that training has seen often (2410.18745).

i - j <= S: i and j; its authors' code has the diagonal i - j = S in both bands. Otherwise i - S + w and j.
"""

import math
from typing import Any, ClassVar

from models.DPI.attention.bands import Segment
from models.DPI.methods import base


class STRING(base.Method):
    """shift: S in tokens (int), or a share of the final n (float). local_window: w. n - S + w and S must fit into W."""

    name: ClassVar[str] = "string"
    label: ClassVar[str] = "STRING"
    colour: ClassVar[str] = "#661166"
    marker: ClassVar[str] = "p"

    shift: base.TokensOrShare = 0.33
    local_window: base.Tokens = 128
    temperature: base.Temperature = base.YARN_OF_TWO

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """The paper's share of the target, or what must go, up to the window."""
        w = min(128, max(1, window // 8))
        return {"shift": min(max(int(0.33 * target), target - window + w, w + 1), window), "local_window": w}

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """Beside the default the smallest shift that reaches with a local window of W/8, and no temperature."""
        default = cls.params_for(window, target)
        w = max(1, window // 8)
        wider = {"shift": min(max(target - window + w, w + 1), window), "local_window": w}
        return [default, wider, {**default, "temperature": "none"}]

    def check_window(self, window: int) -> None:
        """S lies between w and W."""
        shift = base.in_tokens(self.shift, window)
        if not self.local_window < shift <= window:
            said = f"shift = {self.shift}, {shift} tokens, must be above local_window = {self.local_window} and at most"
            raise ValueError(f"{said} the model's window of {window} tokens")

    def reach(self, window: int) -> float:
        """The n up to which both hold."""
        room, s = window - self.local_window, self.shift
        return room + s if isinstance(s, int) else math.floor(min(room / (1 - s), window / s))

    def remedy(self, window: int, target_length: int) -> str:
        """The smallest S that reaches, or how far any does."""
        shift, most = target_length - window + self.local_window, 2 * window - self.local_window
        return f"set shift = {shift}" if shift <= window else f"no shift reaches more than {most}"

    def is_causal(self) -> bool:
        """Where S is a number."""
        return isinstance(self.shift, int)

    def is_plain(self, rope: base.Rope, length: int) -> bool:
        """Within the window, where S is a share."""
        return not self.is_causal() and length <= rope.window

    def layout(self, rope: base.Rope, past: int, length: int) -> list[Segment]:
        """Far keys with the query S - w earlier, near keys at true positions."""
        shift = length if self.is_plain(rope, length) else base.in_tokens(self.shift, length)
        far = base.query_indices(past, length) - shift
        return base.near_and_far(rope, past, length, far, far + self.local_window, base.TRUE_POSITIONS)
