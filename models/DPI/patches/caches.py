"""Whose keys a cache holds. Under a method they are not rotated, so neither the stock model nor another method can
go on from them; each cache carries the mark of the method that filled it.
"""

import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import Cache, StaticCache
from transformers.cache_utils import DynamicLayer, StaticLayer

from models.DPI.patches.rooms import GrowingLayer

NAMES = ("past_key_values", "cache")  # the second since transformers 5.24


def cache_in(values: Mapping[str, Any]) -> Cache | None:
    """The cache among a pass's arguments or outputs, whatever this version of transformers calls it."""
    found: Cache | None = next((values[name] for name in NAMES if values.get(name) is not None), None)
    return found


def name_in(forward: Callable[..., Any]) -> str:
    """What a forward pass calls its cache."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def length_of(cache: Cache | None) -> int:
    """Tokens in a cache."""
    return 0 if cache is None else int(cache.get_seq_length())


def tokens_of_all_layers(cache: Cache) -> int:
    """Tokens whose keys and values every layer holds: a pass that was interrupted ended in some layer."""
    layers: list[Any] = cache.layers
    held = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    return min((0 if tensor is None or tensor.ndim < 4 else tensor.shape[-2] for tensor in held), default=0)


def crop(cache: Cache, tokens: int, room: int, *, static: bool) -> bool:
    """Let a cache hold its first tokens only, of those fed; false, and nothing is changed, where that cannot be.

    tokens: at most as many as were fed. room: that it must hold in all. static: whether it must be a static one. The
    memory of what is cut off is given back with the next token (a static cache keeps it).
    """
    layers: list[Any] = cache.layers
    if isinstance(cache, StaticCache) != static or length_of(cache) < tokens:
        return False
    if static and all(type(layer) is StaticLayer and layer.max_cache_len >= room for layer in layers):
        for layer in layers:
            layer.cumulative_length.fill_(tokens)  # in place: recorded steps read it
        return True
    if not static and all(type(layer) in (DynamicLayer, GrowingLayer) for layer in layers):
        for layer in layers:
            layer.keys, layer.values = layer.keys[:, :, :tokens], layer.values[:, :, :tokens]
        return True
    return False


def check(cache: Cache | None, owner: str) -> None:
    """Raise ValueError if a cache holds keys that are not `owner`'s."""
    if cache is not None and _owner_of(cache) != owner and length_of(cache):
        raise ValueError(
            f"past_key_values holds {length_of(cache)} tokens that were not fed to this model with this method: keys "
            "of the stock model, of another method or of prefix tuning are rotated otherwise; feed the tokens anew"
        )


def mark(cache: Any, owner: str, running: Callable[[], str | None]) -> None:
    """Let a cache take keys of `owner` alone, while it is not empty. running: the owner of the pass under way."""
    if isinstance(cache, Cache) and _owner_of(cache) != owner:
        cache.update = _OwnersUpdate(cache, owner, running)  # type: ignore[method-assign]


def _owner_of(cache: Cache) -> str | None:
    update = vars(cache).get("update")
    return update.owner if isinstance(update, _OwnersUpdate) else None


class _OwnersUpdate:
    """A cache's `update` that refuses keys of others."""

    def __init__(self, cache: Cache, owner: str, running: Callable[[], str | None]) -> None:
        self._cache = weakref.ref(cache)
        self.owner = owner
        self._running = running

    def __call__(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        cache = self._cache()
        if cache is None:
            raise ValueError("this cache is a shallow copy of one that is gone; copy caches with copy.deepcopy")
        if self._running() != self.owner:
            if int(cache.get_seq_length(layer_idx)):
                raise ValueError(
                    "past_key_values holds keys that a method left without rotation, and this model has not that "
                    "method; feed the tokens anew"
                )
            del cache.update  # it was emptied, and serves another model from here on
        return type(cache).update(cache, key_states, value_states, layer_idx, *args, **kwargs)

    def __getstate__(self) -> tuple[Any, ...]:
        return self._cache(), self.owner, self._running

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        cache, self.owner, self._running = state
        self._cache = weakref.ref(cache)
