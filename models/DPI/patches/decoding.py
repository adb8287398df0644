"""Decoding from a CUDA graph: a token's way through the layers is recorded once and replayed for the tokens after it.

Python takes several times as long for a step as the GPU does. Of what it prepares only the plan differs between tokens,
and the recorded kernels read that from tensors, which are written anew for each token; the next token's plan is made
while the GPU works on this one's layers, and written behind them. The keys and values must stay where they are: in a
static cache (`generate(..., cache_implementation="static")`) they do, and a dynamic one gets memory in which it grows
(`rooms`).
"""

import contextlib
import functools
import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StaticCache
from transformers.cache_utils import StaticLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from models.DPI.attention import api, triton
from models.DPI.attention.bands import Plan
from models.DPI.attention.prepared import PreparedStep, StepShape
from models.DPI.patches import caches
from models.DPI.patches.families import head_dim_of, kv_heads_of
from models.DPI.patches.forward_pass import ARGUMENT, ForwardPass
from models.DPI.patches.layers import Layers, are_watched
from models.DPI.patches.rooms import Places, can_grow
from models.DPI.planning import Padding

logger = logging.getLogger(__name__)

# What a replayed forward pass may be given: these, and these only with their usual values.
_TAKEN = {"input_ids", *caches.NAMES, "attention_mask", "position_ids", "cache_position"}
_USUAL = {"use_cache": True, "return_dict": True, "output_attentions": False, "output_hidden_states": False}


# Steps of a dynamic cache run one by one before recording begins, which takes as long as two: who decodes a few tokens
# only may crop or reorder the cache then.
_PATIENCE = 2

Planner = Callable[[Padding], Plan]


@dataclass(eq=False)
class _Recording:
    """Consecutive steps of one generation.

    signature: what may not change between the steps. layers: the model's. ids: the token that a recording reads.
    past: tokens in the cache before the last step. patience: steps still to be run one by one. cache: whose; not kept
    alive. prepared, places, replay: what is written for a step, where it reads and writes, and what runs the layers on
    `ids`; None until there are such. ahead: of the token after the last one.
    """

    signature: tuple[Any, ...]
    layers: Layers
    ids: Tensor
    past: int
    patience: int
    cache: Callable[[], Any] = lambda: None
    prepared: PreparedStep | None = None
    places: Places | None = None
    replay: Callable[[], Tensor] | None = None
    ahead: "_Ahead | None" = None

    def forget(self) -> None:
        """Let go of the memory that the recording works on."""
        self.prepared = self.places = self.replay = self.ahead = None


@dataclass(frozen=True)
class _Ahead:
    """A plan made before it was asked for, and what the kernel reads of it, in the recording's tensors if they fit."""

    padding: Padding
    plan: Plan
    prepared: PreparedStep


class _OfThread(threading.local):
    recording: _Recording | None = None


class RecordedDecoding:
    """The base model's forward pass, replayed where it can be: one token per row, beyond the window, with a cache whose
    keys stay where they are.

    failed: recording was tried in vain, and is not tried again.
    """

    def __init__(self) -> None:
        """Nothing is recorded yet."""
        self.failed = False
        self._of_thread = _OfThread()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is without recordings, which run the layers of the model that is copied."""
        return RecordedDecoding, ()

    def planned(self, padding: Padding) -> Plan | None:
        """The plan of these tokens if it was made ahead: a plan depends on nothing else but the method."""
        recording = self._of_thread.recording
        ahead = None if recording is None else recording.ahead
        return ahead.plan if ahead is not None and ahead.padding == padding else None

    def run(
        self,
        base: nn.Module,
        stock: Callable[..., Any],
        forward_pass: ForwardPass,
        kwargs: dict[str, Any],
        planner: Planner,
    ) -> Any:
        """The output of the base model.

        stock: its own forward pass, which also runs what is not replayed. planner: makes the plan of other tokens.
        """
        input_ids: Tensor | None = kwargs.get("input_ids")
        cache: Any = caches.cache_in(kwargs)
        if input_ids is None or not self._fits(base, input_ids, cache, kwargs, forward_pass):
            self._of_thread.recording = None
            return stock(**kwargs, **{ARGUMENT: forward_pass})
        known = self._known(base, input_ids, cache, forward_pass.padding.past)
        if known is None:
            return stock(**kwargs, **{ARGUMENT: forward_pass})
        hidden = self._step(known, base, stock, input_ids, cache, forward_pass, planner)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)

    def pays(self, base: Any, plan: Plan, attn_impl: str) -> bool:
        """Whether the steps after one of this plan would be replayed, given a static cache."""
        parameter = next(base.parameters())
        head_dim = head_dim_of(base.config)
        return (
            not self.failed
            and can_record(parameter.device)
            and not plan.plain
            and {p.device for p in base.parameters()} == {parameter.device}
            and not are_watched(list(base.modules()))
            and _decodes_fused(plan, attn_impl, parameter.new_empty(1, 1, 1, head_dim))
        )

    def _fits(
        self, base: Any, input_ids: Tensor, cache: Any, kwargs: dict[str, Any], forward_pass: ForwardPass
    ) -> bool:
        unusual = (
            value is not None and name not in _TAKEN and value is not _USUAL.get(name) for name, value in kwargs.items()
        )
        return (
            input_ids.shape[1] == 1
            and can_record(input_ids.device)
            and not self.failed
            and (_is_static(cache) or can_grow(cache, base.config.num_hidden_layers))
            and len({layer.keys.device for layer in cache.layers}) == 1
            and cache.layers[0].keys.shape[1] == kv_heads_of(base.config)  # none elsewhere
            and forward_pass.has_one_plan
            and not any(unusual)
            and not torch.is_grad_enabled()
            and forward_pass.observer is None
            and bool(forward_pass.plan.rows)
            and not forward_pass.runs_stock
            and _decodes_fused(forward_pass.plan, forward_pass.attn_impl, cache.layers[0].keys)
        )

    def _step(
        self,
        known: _Recording,
        base: Any,
        stock: Callable[..., Any],
        input_ids: Tensor,
        cache: Any,
        forward_pass: ForwardPass,
        planner: Planner,
    ) -> Tensor:
        """The hidden states of a step that fits."""
        before, ahead, known.ahead = known.prepared, known.ahead, None
        shape = StepShape.of(len(input_ids), base.config.num_attention_heads, cache.layers[0].keys)
        if ahead is not None and ahead.plan is forward_pass.plan:
            prepared = ahead.prepared
        else:
            prepared = triton.prepare_step(forward_pass.plan, shape, before)
        forward_pass.plan.prepared[shape] = known.prepared = prepared
        elsewhere = before is None or prepared.pieces is not before.pieces
        if elsewhere:
            known.replay = None
        if known.patience:
            known.patience -= 1
            return _hidden(stock, input_ids, cache, forward_pass)
        fresh = elsewhere or known.places is None
        if known.places is None:
            known.places = Places.of(cache)
        places = known.places
        known.ids.copy_(input_ids)
        places.begin(known.past)
        whole = forward_pass.with_whole_cache()

        def layers() -> Tensor:
            with whole.run():
                hidden = _hidden(stock, known.ids, places.cache, whole)
            places.move_on()
            return hidden

        if fresh:
            hidden = layers()  # compiles the kernels
            places.end(cache)
            return hidden
        if known.replay is None:
            try:
                known.replay = record(layers, known.ids.device)
            except RuntimeError as error:  # a layer that waits for the GPU, say; nothing has run
                logger.warning("decoding is not recorded, steps run one by one: %s", str(error).splitlines()[0])
                self.failed, self._of_thread.recording = True, None
                hidden = layers()
                places.end(cache)
                return hidden
        hidden = known.replay().clone()
        places.end(cache)
        known.ahead = _plan_ahead(forward_pass.padding.following(), planner, shape, prepared)
        return hidden

    def _known(self, base: nn.Module, input_ids: Tensor, cache: Any, past: int) -> _Recording | None:
        """The recording that this step goes on with, or a new one; None where somebody watches the layers."""
        signature = (
            tuple(input_ids.shape),
            input_ids.device,
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cuda"),
        )
        known = self._of_thread.recording
        if known is not None and (
            known.cache() is not cache
            or known.signature != signature
            or known.past + 1 != past  # a prefix that is used again
            or not known.layers.are_as_before()
        ):
            known = self._of_thread.recording = None  # before its memory is needed
        if known is None and are_watched(list(base.modules())):  # asked before `Layers` is built, which takes longer
            return None
        layers = Layers(base) if known is None else known.layers
        if layers.are_watched():
            self._of_thread.recording = None
            return None
        if known is None:
            patience = 0 if _is_static(cache) else _PATIENCE
            known = _Recording(signature, layers, input_ids.clone(), past, patience)
            itself = weakref.ref(known)
            known.cache = weakref.ref(cache, lambda _: _forget(itself))
            self._of_thread.recording = known
        known.past = past
        if known.places is not None and not known.places.are_of(cache):
            known.forget()
        return known


def _plan_ahead(padding: Padding, planner: Planner, shape: StepShape, prepared: PreparedStep) -> _Ahead | None:
    """Make the next token's plan while the GPU is at work on this one's layers.

    Its records are written over this one's, behind the replay. Only a step that goes on with `prepared` may read them,
    so the plan does not hold them yet.
    """
    with contextlib.suppress(ValueError, RuntimeError):  # that pass says it, if it is ever asked for
        plan = planner(padding)
        if plan.rows:
            return _Ahead(padding, plan, triton.prepare_step(plan, shape, prepared))
    return None


def _forget(recording: "weakref.ref[_Recording]") -> None:
    """The cache is gone, and what was recorded on its memory goes, too."""
    known = recording()
    if known is not None:
        known.forget()


def _decodes_fused(plan: Plan, attn_impl: str, like: Tensor) -> bool:
    """Whether queries of the device, dtype and head_dim of `like` would be attended to by the fused kernels."""
    with contextlib.suppress(ValueError):  # the stock pass says it
        return api.choose(attn_impl, like, plan) == "triton"
    return False


def can_record(device: torch.device) -> bool:
    """Whether steps on this device can be recorded now."""
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing() and not torch.compiler.is_compiling()


def record(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """A CUDA graph of what `run` launches on the device. Its result is overwritten by the next replay."""
    graph = torch.cuda.CUDAGraph()
    with (
        torch.cuda.device(device),
        torch.cuda.stream(torch.cuda.current_stream(device)),  # restored on an error, too
        torch.cuda.graph(graph, stream=_capture_stream(device), capture_error_mode="thread_local"),
    ):
        result = run()

    def replay() -> Tensor:
        with torch.cuda.device(device):
            graph.replay()
        return result

    return replay


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device: libraries keep memory for every stream that they have seen."""
    return torch.cuda.Stream(device)


def _is_static(cache: object) -> bool:
    return type(cache) is StaticCache and all(type(x) is StaticLayer and x.is_initialized for x in cache.layers)


def _hidden(stock: Callable[..., Any], input_ids: Tensor, cache: Any, forward_pass: ForwardPass) -> Tensor:
    output = stock(input_ids=input_ids, use_cache=True, **{caches.name_in(stock): cache, ARGUMENT: forward_pass})
    hidden: Tensor = output.last_hidden_state
    return hidden
