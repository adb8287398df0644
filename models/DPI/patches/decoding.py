"""Decoding from a CUDA graph: a token's way through the layers is recorded once and replayed for the tokens after it.

Python takes several times as long for a step as the GPU does. Of what it prepares only the plan differs between tokens,
and the recorded kernels read that from tensors, which are written anew for each token. The keys and values must stay
where they are, so this needs a static cache (`generate(..., cache_implementation="static")`).
"""

import contextlib
import functools
import logging
import threading
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
from models.DPI.attention.prepared import PreparedStep
from models.DPI.patches import caches
from models.DPI.patches.families import head_dim_of, kv_heads_of
from models.DPI.patches.forward_pass import ARGUMENT, ForwardPass

logger = logging.getLogger(__name__)

# What a replayed forward pass may be given: these, and these only with their usual values.
_TAKEN = {"input_ids", *caches.NAMES, "attention_mask", "position_ids", "cache_position"}
_USUAL = {"use_cache": True, "return_dict": True, "output_attentions": False, "output_hidden_states": False}


@dataclass
class _Recording:
    """Consecutive steps of one generation. replay: None until the second step; it runs the layers on `ids`.

    signature: what may not change between the steps. past: tokens in the cache before the last of them. modules: those
    whose hooks would not be called.
    """

    signature: tuple[Any, ...]
    prepared: PreparedStep
    ids: Tensor
    past: int
    modules: list[nn.Module]
    replay: Callable[[], Tensor] | None = None


class RecordedDecoding:
    """The base model's forward pass, replayed where it can be: one token per row, beyond the window, a static cache.

    failed: recording was tried in vain, and is not tried again.
    """

    def __init__(self) -> None:
        """Nothing is recorded yet."""
        self.failed = False
        self._of_thread = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is without recordings, which run the layers of the model that is copied."""
        return RecordedDecoding, ()

    def run(self, base: nn.Module, stock: Callable[..., Any], forward_pass: ForwardPass, kwargs: dict[str, Any]) -> Any:
        """The output of the base model. stock: its own forward pass, which also runs what is not replayed."""
        input_ids: Tensor | None = kwargs.get("input_ids")
        cache: Any = caches.cache_in(kwargs)
        if input_ids is None or not self._fits(base, input_ids, cache, kwargs, forward_pass):
            self._of_thread.recording = None
            return stock(**kwargs, **{ARGUMENT: forward_pass})
        whole = forward_pass.with_whole_cache()
        with whole.run():
            hidden = self._step(base, stock, input_ids, cache, whole)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)

    def pays(self, base: nn.Module, plan: Plan, attn_impl: str) -> bool:
        """Whether the steps after one of this plan would be replayed, given a static cache."""
        parameter = next(base.parameters())
        return (
            not self.failed
            and can_record(parameter.device)
            and not plan.plain
            and {p.device for p in base.parameters()} == {parameter.device}
            and not _are_watched(list(base.modules()))
            and _decodes_fused(base, plan, attn_impl, parameter.device, parameter.dtype)
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
            and _is_static(cache)
            and len({layer.keys.device for layer in cache.layers}) == 1
            and cache.layers[0].keys.shape[1] == kv_heads_of(base.config)  # none elsewhere
            and forward_pass.has_one_plan
            and not any(unusual)
            and not torch.is_grad_enabled()
            and forward_pass.observer is None
            and bool(forward_pass.plan.rows)
            and not forward_pass.runs_stock
            and _decodes_fused(
                base, forward_pass.plan, forward_pass.attn_impl, cache.layers[0].keys.device, cache.layers[0].keys.dtype
            )
        )

    def _step(self, base: Any, stock: Callable[..., Any], input_ids: Tensor, cache: Any, whole: ForwardPass) -> Tensor:
        keys = cache.layers[0].keys
        past = whole.padding.past
        signature = (
            tuple(input_ids.shape),
            tuple(keys.shape),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cuda"),
            *(x.data_ptr() for layer in cache.layers for x in (layer.keys, layer.values, layer.cumulative_length)),
        )
        known: _Recording | None = getattr(self._of_thread, "recording", None)
        if known is not None and (
            known.signature != signature or known.past + 1 != past or _are_watched(known.modules)
        ):  # also where a prefix is used again: weights may have changed between generations
            known = None
        prepared = triton.prepare_step(
            whole.plan,
            len(input_ids),
            base.config.num_attention_heads,
            keys.shape[1],
            keys.shape[3],
            keys.device,
            None if known is None else known.prepared,
        )
        if known is None or prepared.pieces is not known.prepared.pieces:
            modules = list(base.modules())
            self._of_thread.recording = None
            if not _are_watched(modules):
                self._of_thread.recording = _Recording(signature, prepared, input_ids.clone(), past, modules)
            return _hidden(stock, input_ids, cache, whole)  # compiles the kernels
        known.prepared, known.past = prepared, past
        known.ids.copy_(input_ids)
        if known.replay is None:
            try:
                known.replay = record(lambda: _hidden(stock, known.ids, cache, whole), keys.device)
            except RuntimeError as error:  # a layer that waits for the GPU, say; nothing has run
                logger.warning("decoding is not recorded, steps run one by one: %s", str(error).splitlines()[0])
                self.failed, self._of_thread.recording = True, None
                return _hidden(stock, input_ids, cache, whole)
        return known.replay().clone()


def _decodes_fused(base: Any, plan: Plan, attn_impl: str, device: torch.device, dtype: torch.dtype) -> bool:
    query = torch.empty(1, 1, 1, head_dim_of(base.config), device=device, dtype=dtype)
    with contextlib.suppress(ValueError):  # the stock pass says it
        return api.choose(attn_impl, query, plan) == "triton"
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


def _are_watched(modules: list[nn.Module]) -> bool:
    """Whether somebody waits for a module to be called, accelerate included. Asked at every step, so it is quick."""
    return any(
        (module._forward_hooks or module._forward_pre_hooks or "_hf_hook" in vars(module)) and _is_watched(module)
        for module in modules
    )


def _is_watched(module: nn.Module) -> bool:
    """transformers' own hooks collect nothing unless a pass asks for it."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return "_hf_hook" in vars(module) or any(getattr(h, "__name__", "") != "output_capturing_hook" for h in hooks)
