"""Dynamic caches that grow in place: a layer's keys and values lie in memory with room behind them.

transformers' own layers copy all that they hold for every token; here a token is written behind the others, and what a
recording reads stays where it is. Nobody who holds a layer's tensors, or a copy of the layer, sees them change: a
tensor knows the room that it begins, and is written behind only if it is still all that the room holds. Whoever
replaces a layer's tensors (crops, reorders, resets it) so takes it out of its room.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, StaticLayer

# Tokens that there is room for behind those that a layer holds.
_MORE = 512
_ATTRIBUTE = "_gali_room"


@dataclass(eq=False)
class Room:
    """Memory of a layer, (B, Hkv, capacity, D) each; zeros behind the tokens in use."""

    keys: Tensor
    values: Tensor
    used: int

    @property
    def left(self) -> int:
        """Tokens that there is room for."""
        return self.keys.shape[2] - self.used


class GrowingLayer(DynamicLayer):
    """A dynamic layer that writes new tokens into its room; without one, or with gradients, it is like any other."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(B, Hkv, T, D) each -> all keys and values."""
        room = room_of(self)
        if room is None or room.left < key_states.shape[2] or torch.is_grad_enabled():
            return super().update(key_states, value_states, *args, **kwargs)
        for memory, new in ((room.keys, key_states), (room.values, value_states)):
            fits = (*new.shape[:2], new.shape[3]) == (*memory.shape[:2], memory.shape[3])
            if not fits or new.dtype != memory.dtype:  # the stock layer does what it does, or says what is wrong
                return super().update(key_states, value_states, *args, **kwargs)
        last = room.used + key_states.shape[2]
        room.keys[:, :, room.used : last] = key_states
        room.values[:, :, room.used : last] = value_states
        return _hold(self, room, last)


class _InPlaceLayer(StaticLayer):
    """A layer of memory that exists, written at a place that the GPU reads: `place`, () int64."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, place: Tensor) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.cumulative_length = keys, values, place
        self.dtype, self.device = keys.dtype, keys.device
        self.batch_size, self.num_heads = keys.shape[:2]
        self.k_head_dim, self.v_head_dim = keys.shape[3], values.shape[3]
        self._at = place.view(1)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """One token, (B, Hkv, 1, D) each -> all of the memory. Who records moves the place on."""
        self.keys.index_copy_(2, self._at, key_states)
        self.values.index_copy_(2, self._at, value_states)
        return self.keys, self.values


@dataclass(frozen=True)
class Places:
    """Where a recording's layers read and write.

    cache: what the layers are given. rooms: of a dynamic cache, whose place the host sets. lengths: of a static one's
    layers, each the place of its own, moved on by the recording. addresses: of a static one.
    """

    cache: Cache
    rooms: tuple[Room, ...] = ()
    lengths: tuple[Tensor, ...] = ()
    addresses: tuple[int, ...] = ()

    @classmethod
    def of(cls, cache: Cache) -> Self:
        """Of a static cache, or of a dynamic one of `can_grow`, whose layers get rooms where they have none."""
        layers: list[Any] = cache.layers
        if isinstance(cache, StaticCache):
            lengths = tuple(layer.cumulative_length for layer in layers)
            twins: list[Any] = [_InPlaceLayer(layer.keys, layer.values, layer.cumulative_length) for layer in layers]
            return cls(Cache(layers=twins), lengths=lengths, addresses=_addresses(layers))
        rooms = tuple(_make_room(layer) for layer in layers)
        place = torch.zeros((), dtype=torch.int64, device=rooms[0].keys.device)
        twins = [_InPlaceLayer(room.keys, room.values, place) for room in rooms]
        return cls(Cache(layers=twins), rooms=rooms)

    def are_of(self, cache: Cache) -> bool:
        """Whether they are still the cache's, and have room for a token."""
        layers: list[Any] = cache.layers
        if self.addresses:
            return self.addresses == _addresses(layers)
        return len(layers) == len(self.rooms) and all(
            room.left and room_of(layer) is room for layer, room in zip(layers, self.rooms, strict=True)
        )

    def begin(self, past: int) -> None:
        """Before a step behind so many tokens."""
        if self.rooms:
            layer: Any = self.cache.layers[0]
            layer.cumulative_length.fill_(past)

    def move_on(self) -> None:
        """What a step records behind its layers."""
        if self.lengths:
            torch._foreach_add_(self.lengths, 1)

    def end(self, cache: Cache) -> None:
        """After a step: the cache holds its token."""
        for layer, room in zip(cache.layers, self.rooms, strict=bool(self.rooms)):
            _hold(layer, room, room.used + 1)


def can_grow(cache: object, layers: int) -> bool:
    """Whether a cache is a plain dynamic one of so many layers, with tokens in all."""
    if type(cache) is not DynamicCache or cache.offloading or len(cache.layers) != layers:
        return False
    held: list[Any] = cache.layers
    return (
        all(type(layer) in (DynamicLayer, GrowingLayer) and layer.is_initialized for layer in held)
        and len({layer.keys.shape for layer in held}) == 1
        and held[0].keys.ndim == 4
    )


def room_of(layer: Any) -> Room | None:
    """The room whose tokens are all that a layer holds, where it can be written."""
    keys, values = layer.keys, layer.values
    room: Room | None = getattr(keys, _ATTRIBUTE, None)
    if room is None:
        return None
    whole = keys.shape[2] == room.used == values.shape[2]
    there = keys.data_ptr() == room.keys.data_ptr() and values.data_ptr() == room.values.data_ptr()
    writable = torch.is_inference_mode_enabled() or not room.keys.is_inference()
    return room if whole and there and writable else None


def _make_room(layer: Any) -> Room:
    """The room of a layer, with place for a token at least; the layer is a growing one from then on."""
    found = room_of(layer)
    if found is not None and found.left:
        return found
    del found
    layer.__class__ = GrowingLayer
    used = layer.keys.shape[2]
    layer.keys = _with_room(layer.keys)  # the memory of one is free before the other's is taken
    layer.values = _with_room(layer.values)
    room = Room(layer.keys, layer.values, used)
    _hold(layer, room, used)
    return room


def _with_room(x: Tensor) -> Tensor:
    used = x.shape[2]
    memory = x.new_empty(*x.shape[:2], used + _MORE, x.shape[3])
    memory[:, :, :used] = x
    memory[:, :, used:] = 0  # a kernel multiplies what it does not see by 0
    return memory


def _hold(layer: Any, room: Room, tokens: int) -> tuple[Tensor, Tensor]:
    """Let a layer hold the first tokens of its room, and return them."""
    room.used = tokens
    keys, values = room.keys[:, :, :tokens], room.values[:, :, :tokens]
    setattr(keys, _ATTRIBUTE, room)
    layer.keys, layer.values = keys, values
    return keys, values


def _addresses(layers: list[Any]) -> tuple[int, ...]:
    return tuple(x.data_ptr() for layer in layers for x in (layer.keys, layer.values, layer.cumulative_length))
