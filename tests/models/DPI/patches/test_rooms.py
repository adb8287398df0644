"""Dynamic caches that grow in place: alone, and under recorded decoding beside the same steps run one by one."""

import contextlib
import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from models.DPI.methods import build_method
from models.DPI.patches import Llama as patch
from models.DPI.patches import decoding, rooms
from models.DPI.patches.rooms import GrowingLayer, Places, can_grow, room_of
from tests.models.DPI.helpers import CHUNK_FREE, WINDOW, tokens
from tests.models.DPI.patches.test_decoding import DEVICE, _Recorder, model, recorder  # noqa: F401

LAYERS = 2


def filled(held: int, batch: int = 2) -> DynamicCache:
    """A cache with so many tokens."""
    cache = DynamicCache()
    for layer in range(LAYERS):
        cache.update(*some(held, batch), layer)
    return cache


def some(tokens_: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, tokens_, 8), torch.randn(batch, 3, tokens_, 5)


def add(cache: Cache, key: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [cache.update(key, value, layer) for layer in range(LAYERS)]


def held(cache: Any) -> list[Tensor]:
    return [x for layer in cache.layers for x in (layer.keys, layer.values)]


def pair(tokens_: int) -> tuple[DynamicCache, DynamicCache]:
    """A cache in rooms, and one of the same content that stays as it is."""
    cache = filled(tokens_)
    stock = copy.deepcopy(cache)
    Places.of(cache)
    assert all(type(layer) is GrowingLayer for layer in cache.layers)
    return cache, stock


def same(cache: DynamicCache, stock: DynamicCache) -> None:
    assert cache.get_seq_length() == stock.get_seq_length()
    for one, other in zip(held(cache), held(stock), strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_it_holds_what_a_stock_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "_MORE", 4)
    cache, stock = pair(7)
    for count in (1, 2, 1, 3, 1):  # the fourth is too much for the room
        new = some(count)
        for one, other in zip(add(cache, *new), add(stock, *new), strict=True):
            assert all(map(torch.equal, one, other))
        same(cache, stock)
    assert room_of(cache.layers[0]) is None
    Places.of(cache)
    same(cache, stock)
    assert room_of(cache.layers[0]) is not None


def _crop(cache: Any) -> Any:
    cache.crop(-2)


def _reorder(cache: Any) -> Any:
    cache.reorder_cache(torch.tensor([1, 0]))


def _repeat(cache: Any) -> Any:
    cache.batch_repeat_interleave(2)


def _select(cache: Any) -> Any:
    cache.batch_select_indices(torch.tensor([1]))


def _replace(cache: Any) -> Any:
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys * 2, layer.values.clone()


def _of_keys_only(cache: Any) -> Any:
    cache.layers[0].keys = cache.layers[0].keys.clone()


def _of_values_only(cache: Any) -> Any:
    cache.layers[1].values = cache.layers[1].values * 2


def _reset(cache: Any) -> Any:
    cache.reset()


def _swap_memory(cache: Any) -> Any:
    cache.layers[1].values.data = cache.layers[1].values.data * 3


@pytest.mark.parametrize(
    "change",
    [_crop, _reorder, _repeat, _select, _replace, _of_keys_only, _of_values_only, _reset, _swap_memory],
    ids=lambda f: f.__name__,
)
@torch.no_grad()
def test_changes_from_outside(change: Callable[[Any], Any]) -> None:
    cache, stock = pair(7)
    places = Places.of(cache)
    assert places.are_of(cache)
    for x in (cache, stock):
        change(x)
    if change is _reset and stock.get_seq_length():  # before transformers 5.18 it only writes zeros
        assert not any(x.any() for x in held(cache))
    else:
        assert not places.are_of(cache)
    new = some(1, batch={"_repeat": 4, "_select": 1}.get(change.__name__, 2))
    for x in (cache, stock):
        add(x, *new)
    same(cache, stock)
    Places.of(cache)
    for x in (cache, stock):
        add(x, *new)
    same(cache, stock)


@torch.no_grad()
def test_what_others_hold_never_changes() -> None:
    cache, _ = pair(7)
    add(cache, *some(1))
    kept, before = held(cache), [x.clone() for x in held(cache)]
    add(cache, *some(2))
    cache.crop(-3)
    add(cache, *some(4))
    for layer, (key, value) in zip(cache.layers, _pairs(kept), strict=True):
        layer.keys, layer.values = key, value  # back to where it was
    add(cache, *some(1))
    assert all(map(torch.equal, kept, before))


def _pairs(flat: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(flat[::2], flat[1::2], strict=True)


@pytest.mark.parametrize("first", [0, 1], ids=["the original first", "the copy first"])
@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy], ids=["shallow", "deep"])
@torch.no_grad()
def test_two_who_share_a_beginning(how: Callable[[Any], Any], first: int) -> None:
    cache, stock = pair(7)
    other, other_stock = DynamicCache(), DynamicCache()
    other.layers, other_stock.layers = [how(x) for x in cache.layers], [how(x) for x in stock.layers]
    places = Places.of(cache)
    both = [(cache, stock), (other, other_stock)]
    for grown, plain in both[first:] + both[:first]:
        new = some(1)
        add(grown, *new)
        add(plain, *new)
    for _ in range(2):
        for grown, plain in both:
            new = some(2)
            add(grown, *new)
            add(plain, *new)
            Places.of(grown)
    for grown, plain in both:
        same(grown, plain)
    assert not (places.are_of(cache) and places.are_of(other))


def test_memory_of_inference_mode_is_left_behind() -> None:
    with torch.inference_mode():
        cache, stock = pair(7)
    with torch.no_grad():
        new = some(1)
        add(cache, *new)
        add(stock, *new)
        same(cache, stock)


def test_gradients_go_through_the_stock_layer() -> None:
    with torch.no_grad():
        cache, _ = pair(7)
    room = room_of(cache.layers[0])
    assert room is not None
    key, value = (x.requires_grad_() for x in some(1))
    found = cache.update(key, value, 0)
    (found[0].sum() + found[1].sum()).backward()
    assert key.grad is not None
    assert value.grad is not None
    assert not room.keys.requires_grad  # or the room would hold on to the pass


@torch.no_grad()
def test_another_dtype_is_not_cast_in_silence() -> None:
    cache, stock = pair(7)
    new = tuple(x.double() for x in some(1))
    assert add(cache, *new)[0][0].dtype == add(stock, *new)[0][0].dtype == torch.float64


@torch.no_grad()
def test_behind_the_tokens_are_zeros() -> None:
    cache, _ = pair(7)
    room = room_of(cache.layers[0])
    assert room is not None
    assert not room.keys[:, :, 7:].any()
    assert not room.values[:, :, 7:].any()


@torch.no_grad()
def test_which_caches_can_grow() -> None:
    assert can_grow(filled(3), LAYERS)
    assert not can_grow(filled(3), LAYERS + 1)
    assert not can_grow(DynamicCache(), LAYERS)
    uneven = filled(3)
    uneven.update(*some(1), 1)
    assert not can_grow(uneven, LAYERS)

    class Own(DynamicLayer):
        pass

    other = filled(3)
    other.layers[0].__class__ = Own
    assert not can_grow(other, LAYERS)


def _adapt(model_: Any, cache: Any) -> None:
    """Another weight, elsewhere in memory."""
    layer = model_.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach() * 1.5)


def _data(model_: Any, cache: Any) -> None:
    layer = model_.model.layers[1].self_attn.q_proj
    layer.weight.data = layer.weight.data * 1.5


def _hook(model_: Any, cache: Any) -> None:
    """Somebody who changes what a module returns."""
    model_.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output * 0.5)


def _module(model_: Any, cache: Any) -> None:
    old = model_.model.layers[1].self_attn.o_proj
    new = nn.Linear(old.in_features, old.out_features, bias=False, dtype=old.weight.dtype, device=old.weight.device)
    new.weight.data.copy_(old.weight.flip(0))
    model_.model.layers[1].self_attn.o_proj = new


BETWEEN: dict[str, Callable[[Any, Any], None]] = {
    "nothing": lambda model_, cache: None,
    "crop": lambda model_, cache: _crop(cache),
    "reorder": lambda model_, cache: _reorder(cache),
    "replace": lambda model_, cache: _replace(cache),
    "weight": _adapt,
    "weight's data": _data,
    "module": _module,
    "hook": _hook,
}


@torch.no_grad()
def play(model_: PreTrainedModel, ids: Tensor, between: Callable[[Any, Any], None]) -> Tensor:
    """Logits of steps on a dynamic cache, with something in between."""
    cache, out = DynamicCache(config=model_.config), []
    ids = ids.to(DEVICE)
    model_(ids[:, :41], past_key_values=cache)
    for at in range(41, 52):
        if at == 47:
            between(model_, cache)
        past = cache.get_seq_length()
        out.append(model_(ids[:, past : past + 1], past_key_values=cache).logits)
    return torch.cat(out, dim=1).float()


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as context:
        context.setattr(decoding, "can_record", lambda device: False)
        yield


@pytest.mark.parametrize("between", BETWEEN)
def test_replayed_steps_are_the_steps(model: PreTrainedModel, recorder: _Recorder, between: str) -> None:  # noqa: F811
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    twin = copy.deepcopy(model)
    ids = tokens(2, 52)
    with unrecorded():
        expected = play(twin, ids, BETWEEN[between])
    assert recorder.recorded == 0
    torch.testing.assert_close(play(model, ids, BETWEEN[between]), expected, rtol=0, atol=4e-3)
    assert recorder.recorded == (1 if between in ("nothing", "hook") else 2)
    assert recorder.replayed >= (3 if between == "hook" else 4)


@torch.no_grad()
def test_rooms_that_are_full(
    model: PreTrainedModel,  # noqa: F811
    recorder: _Recorder,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    monkeypatch.setattr(rooms, "_MORE", 4)
    ids = tokens(2, 52)
    found = play(model, ids, BETWEEN["nothing"])
    with unrecorded():
        torch.testing.assert_close(found, play(model, ids, BETWEEN["nothing"]), rtol=0, atol=4e-3)
    assert recorder.recorded == 2


@torch.no_grad()
def test_a_plan_made_ahead_is_of_the_same_padding(model: PreTrainedModel, recorder: _Recorder) -> None:  # noqa: F811
    """A row that is masked from now on, a cache that is set back, another of the same length: each gets its own."""
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    ids = tokens(2, 50).to(DEVICE)
    masks = [torch.ones(2, n, dtype=torch.int64, device=DEVICE) for n in range(51)]
    for mask in masks[48:]:
        mask[1, :5] = 0

    def run() -> Tensor:
        cache, out = DynamicCache(config=model.config), []
        model(ids[:, :41], attention_mask=masks[41], past_key_values=cache)
        for at in range(41, 50):
            out.append(model(ids[:, at : at + 1], attention_mask=masks[at + 1], past_key_values=cache).logits)
        return torch.cat(out, dim=1).float()

    found = run()
    assert recorder.replayed >= 2
    with unrecorded():
        torch.testing.assert_close(found, run(), rtol=0, atol=4e-3)


@torch.no_grad()
def test_a_cache_that_is_gone_leaves_no_memory(model: PreTrainedModel, recorder: _Recorder) -> None:  # noqa: F811
    patch.install(model, build_method("dpi", CHUNK_FREE, WINDOW), WINDOW, attn_impl="triton")
    ids, cache = tokens(1, 47).to(DEVICE), DynamicCache(config=model.config)
    model(ids[:, :41], past_key_values=cache)
    for at in range(41, 47):
        model(ids[:, at : at + 1], past_key_values=cache)
    assert recorder.replayed
    room = room_of(cache.layers[0])
    assert room is not None
    memory = weakref.ref(room)
    del room, cache
    gc.collect()
    assert memory() is None
