"""Decoding from a CUDA graph: a token's way through the layers is recorded once and replayed for the tokens after it.

Python takes several times as long for a step as the GPU does. Of what it prepares only the plan differs between tokens,
and the recorded kernels read that from tensors, which are written anew for each token. The keys and values must stay
where they are, so this needs a static cache (`generate(..., cache_implementation="static")`).
"""

import copy
import functools
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import StaticCache
from transformers.cache_utils import StaticLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from models.DPI.attention import api, triton
from models.DPI.attention.bands import Plan
from models.DPI.attention.triton_work import PreparedOne
from models.DPI.planning import Padding

logger = logging.getLogger(__name__)

# What a replayed forward pass may be given: these, and these only with their usual values.
_TAKEN = {"past_key_values", "attention_mask", "position_ids", "cache_position"}
_USUAL = {"use_cache": True, "return_dict": True, "output_attentions": False, "output_hidden_states": False}


class Installation(Protocol):
    """What decoding needs to know of a model's method."""

    base: Any
    config: Any
    attn_impl: str
    observer: Any

    @property
    def runs_stock(self) -> bool: ...
    def plan_pass(self, attention_mask: Tensor | None, batch_size: int, past: int, new: int) -> Plan: ...
    def make_plan(self, padding: Padding) -> Plan: ...
    def planned_ahead(self) -> AbstractContextManager[None]: ...
    def whole_cache(self) -> AbstractContextManager[None]: ...


@dataclass
class _Recording:
    """Consecutive steps of one generation. replay: None until the second step; it runs the layers on `ids`.

    signature: what may not change between the steps. past: tokens in the cache before the last of them. modules: those
    whose hooks would not be called.
    """

    signature: tuple[Any, ...]
    prepared: PreparedOne
    ids: Tensor
    past: int
    modules: list[nn.Module]
    replay: Callable[[], Tensor] | None = None


class RecordedDecoding:
    """The base model's forward pass, replayed where it can be: one token a row, beyond the window, a static cache."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.recording: _Recording | None = None
        self.failed = False  # to record; not tried again

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecordedDecoding":
        """Without the recording, which runs the layers of the model that is copied."""
        return RecordedDecoding(copy.deepcopy(self.installation, memo))

    def forward(self, stock: Callable[..., Any], input_ids: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """stock: the model's own forward pass, which also runs what is not replayed."""
        cache: Any = kwargs.get("past_key_values")
        if input_ids is None or args or not self._fits(input_ids, cache, kwargs):
            self.recording = None
            return stock(input_ids, *args, **kwargs)
        past = int(cache.get_seq_length())
        plan = self.installation.plan_pass(kwargs.get("attention_mask"), len(input_ids), past, 1)
        device, dtype = cache.layers[0].keys.device, cache.layers[0].keys.dtype
        with self.installation.planned_ahead():
            if not plan.rows or self.installation.runs_stock or not self._decodes_fused(plan, device, dtype):
                self.recording = None
                return stock(input_ids, **kwargs)
            with self.installation.whole_cache():
                hidden = self._step(stock, input_ids, cache, past, plan)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)

    def pays(self, length: int) -> bool:
        """Whether the steps after `length` tokens would be replayed, given a static cache."""
        installation = self.installation
        parameter = next(installation.base.parameters())
        if self.failed or not can_record(parameter.device):
            return False
        plan = installation.make_plan(Padding(None, length, 1))
        return (
            not plan.plain
            and {p.device for p in installation.base.parameters()} == {parameter.device}
            and not _are_watched(list(installation.base.modules()))
            and self._decodes_fused(plan, parameter.device, parameter.dtype)
        )

    def _fits(self, input_ids: Tensor, cache: Any, kwargs: dict[str, Any]) -> bool:
        mask = kwargs.get("attention_mask")
        unusual = (
            value is not None and name not in _TAKEN and value is not _USUAL.get(name) for name, value in kwargs.items()
        )
        return (
            input_ids.shape[1] == 1
            and can_record(input_ids.device)
            and not self.failed
            and _is_static(cache)
            and len({layer.keys.device for layer in cache.layers}) == 1
            and cache.layers[0].keys.shape[1] == self.installation.config.num_key_value_heads  # none elsewhere
            and not any(unusual)
            and (mask is None or mask.ndim == 2)
            and not torch.is_grad_enabled()
            and self.installation.observer is None
        )

    def _decodes_fused(self, plan: Plan, device: torch.device, dtype: torch.dtype) -> bool:
        head_dim = self.installation.base.layers[0].self_attn.head_dim
        query = torch.empty(1, 1, 1, head_dim, device=device, dtype=dtype)
        try:
            return api.choose(self.installation.attn_impl, query, plan) == "triton"
        except ValueError:  # the stock pass says it
            return False

    def _step(self, stock: Callable[..., Any], input_ids: Tensor, cache: Any, past: int, plan: Plan) -> Tensor:
        keys = cache.layers[0].keys
        signature = (
            tuple(input_ids.shape),
            tuple(keys.shape),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cuda"),
            *(x.data_ptr() for layer in cache.layers for x in (layer.keys, layer.values, layer.cumulative_length)),
        )
        known = self.recording
        if known is not None and (
            known.signature != signature or known.past + 1 != past or _are_watched(known.modules)
        ):  # also where a prefix is used again: weights may have changed between generations
            known = None
        prepared = triton.prepare_step(
            plan, len(input_ids), self.installation.config.num_attention_heads, keys.shape[1], keys.shape[3],
            keys.device, None if known is None else known.prepared,
        )  # fmt: skip
        if known is None or prepared.work is not known.prepared.work:
            modules = list(self.installation.base.modules())
            self.recording = None
            if not _are_watched(modules):
                self.recording = _Recording(signature, prepared, input_ids.clone(), past, modules)
            return _hidden(stock, input_ids, cache)  # compiles the kernels
        known.prepared, known.past = prepared, past
        known.ids.copy_(input_ids)
        if known.replay is None:
            try:
                known.replay = record(lambda: _hidden(stock, known.ids, cache), keys.device)
            except RuntimeError as error:  # a layer that waits for the GPU, say; nothing has run
                logger.warning("decoding is not recorded, steps run one by one: %s", str(error).splitlines()[0])
                self.failed, self.recording = True, None
                return _hidden(stock, input_ids, cache)
        return known.replay().clone()


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


def _hidden(stock: Callable[..., Any], input_ids: Tensor, cache: Any) -> Tensor:
    hidden: Tensor = stock(input_ids=input_ids, past_key_values=cache, use_cache=True).last_hidden_state
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
