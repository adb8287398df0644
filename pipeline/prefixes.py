"""What consecutive prompts begin with is read once: one cache is kept from a prompt to the next, cut where they part.

It serves methods under which a token's keys and values depend on its prefix alone. The texts are those of prompts read
whole, but for rounding: the same numbers are added up in pieces of another size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from models.DPI.patches.caches import crop, length_of
from models.DPI.patches.families import LOCAL, kinds_of_layers
from models.tokens import common_prefix

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedConfig

    from models.DPI.methods import Method

_MUCH_SHORTER = 4


def why_not(method: Method | None, config: PreTrainedConfig) -> str | None:
    """Why prompts cannot share what they begin with; None if they can. config: the model's."""
    if method is not None and not method.is_causal():
        return (
            f"under method {method.name!r} with {method!r} a token's keys depend on how many tokens are fed at once; "
            "take a method that is causal (GALI is with chunk_coe = 1)"
        )
    if LOCAL in kinds_of_layers(config):
        return "the model has layers that attend locally, whose cache drops what a shorter prefix would need"
    return None


class KeptCache:
    """The cache of the last prompt and its continuation, or none. At most one is alive in a generation's course, but
    for a much shorter prompt between two that share much (L-Eval's question to what the model knows of the world).
    """

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self._ids: list[int] = []
        self._cache: Cache | None = None
        self._passed_over = False

    def __bool__(self) -> bool:
        """Whether a cache is kept."""
        return self._cache is not None

    def passes_over(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt leaves what is kept to the one after it: it is much shorter, and not the second such one."""
        self._passed_over = (
            self._cache is not None
            and not self._passed_over
            and _MUCH_SHORTER * len(prompt) < len(self._ids)
            and 2 * common_prefix(prompt, self._ids) < len(prompt)
        )
        return self._passed_over

    def take(self, prompt: Sequence[int], room: int, *, static: bool) -> Cache | None:
        """The cache with what the prompt begins with, at least one token less than the prompt; None if there is none.

        It is kept no longer, so that a generation that fails leaves nothing behind. room: tokens that it must hold;
        static: whether it must be of that kind.
        """
        cache, ids = self._cache, self._ids
        self.drop()
        shared = min(common_prefix(prompt, ids), len(prompt) - 1)
        return cache if cache is not None and shared and crop(cache, shared, room, static=static) else None

    def keep(self, ids: Sequence[int], cache: Cache) -> None:
        """Keep the cache of one row whose first tokens are ids; those behind what it holds were not fed."""
        self._ids, self._cache = list(ids[: length_of(cache)]), cache

    def drop(self) -> None:
        """Give the memory back."""
        self._ids, self._cache = [], None
