"""STRING: large distances are shifted down to ones that training has seen often (2410.18745).

i - j <= S: i and j. Otherwise i - S + w and j. Cosines and sines are multiplied by 0.1 ln 2 + 1. Its authors' code
attends to the diagonal i - j = S twice, in both bands; here, as in the paper, once, in the first. Their S is a number,
0.33 of the length that the model is loaded for: an int here. A float is a share of the final n: a token's logits then
depend on how many are fed at once, and up to W tokens are left to the stock model.
"""

import math
from typing import Annotated, Any, ClassVar

from pydantic import Field

from models.DPI.attention.bands import Segment
from models.DPI.methods import base
from models.DPI.methods.base import MAX_TOKENS, Method, Rope, Temperature, Tokens


class STRING(Method):
    """shift: S in tokens (int), or a share of n (float). local_window: w. Needs n - S + w <= W and S <= W."""

    name: ClassVar[str] = "string"
    label: ClassVar[str] = "STRING"
    colour: ClassVar[str] = "#661166"
    marker: ClassVar[str] = "p"

    shift: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | Annotated[float, Field(gt=0.0, lt=1.0)] = 0.33
    local_window: Tokens = 128
    temperature: Temperature = base.YARN_OF_TWO

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
        if not self.local_window < self._shift(window) <= window:
            raise ValueError(
                f"shift = {self.shift}, {self._shift(window)} tokens, must be above local_window = {self.local_window} "
                f"and at most the model's window of {window} tokens"
            )

    def reach(self, window: int) -> float:
        """The n up to which both hold."""
        room = window - self.local_window
        share = self.shift
        return room + share if self.is_causal() else math.floor(min(room / (1 - share), window / share))

    def remedy(self, window: int, target_length: int) -> str:
        """The smallest S that reaches, or how far any does."""
        shift = target_length - window + self.local_window
        if shift > window:
            return f"no shift reaches more than {2 * window - self.local_window}"
        return f"set shift = {shift}"

    def is_causal(self) -> bool:
        """Where S is a number."""
        return isinstance(self.shift, int)

    def is_plain(self, rope: Rope, length: int) -> bool:
        """Within the window, where S is a share."""
        return not self.is_causal() and length <= rope.window

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """Far keys with the query S - w earlier, near keys at true positions."""
        far = base.query_indices(past, length) - (length if self.is_plain(rope, length) else self._shift(length))
        return base.near_and_far(rope, past, length, far, far + self.local_window, base.TRUE_POSITIONS)

    def _shift(self, length: int) -> int:
        return self.shift if isinstance(self.shift, int) else int(self.shift * length)
