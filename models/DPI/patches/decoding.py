"""Decoding from a CUDA graph: a token's way through the layers is recorded once and replayed for the tokens after it.

Python takes several times as long for a step as the GPU does. Of what it prepares only the plan differs between tokens,
and the recorded kernels read that from tensors, which are written anew for each token. The keys and values must stay
where they are, so this needs a static cache (`generate(..., cache_implementation="static")`).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StaticCache
from transformers.cache_utils import StaticLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from models.DPI.attention import api, triton
from models.DPI.attention.triton_work import PreparedOne

if TYPE_CHECKING:
    from models.DPI.patches.Llama import _Installation

# What a model's forward pass may be asked besides its tokens, mask and cache without leaving the recorded path.
_HARMLESS = {"position_ids", "cache_position", "use_cache", "return_dict"}


@dataclass
class _Recording:
    """Steps on one cache. replay: None until the second step; it runs the layers on `ids` and returns their result."""

    signature: tuple[Any, ...]
    prepared: PreparedOne
    ids: Tensor
    replay: Callable[[], Tensor] | None = None


class RecordedDecoding:
    """The base model's forward pass, replayed where it can be: one token a row, beyond the window, a static cache."""

    def __init__(self, installation: "_Installation") -> None:
        self.installation = installation
        self.recording: _Recording | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecordedDecoding":
        """Without the recording, which runs the layers of the model that is copied."""
        return RecordedDecoding(copy.deepcopy(self.installation, memo))

    def forward(self, stock: Callable[..., Any], input_ids: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """stock: the model's own forward pass, which also runs what is not replayed."""
        cache: Any = kwargs.get("past_key_values")
        if input_ids is None or args or not self._fits(input_ids, cache, kwargs):
            self.recording = None  # recordings end with a generation: weights may change before the next
            return stock(input_ids, *args, **kwargs)
        past = int(cache.get_seq_length())
        plan = self.installation.plan_pass(kwargs.get("attention_mask"), len(input_ids), past, 1)
        if self.installation.runs_stock or not plan.rows or not self._attends_fused(cache):
            self.recording = None
            return stock(input_ids, **kwargs)
        with self.installation.whole_cache():
            return self._step(stock, input_ids, cache)

    def _fits(self, input_ids: Tensor, cache: Any, kwargs: dict[str, Any]) -> bool:
        extra = {name for name, value in kwargs.items() if value is not None and value is not False} - _HARMLESS
        mask = kwargs.get("attention_mask")
        return (
            input_ids.shape[1] == 1
            and can_record(input_ids.device)
            and type(cache) is StaticCache
            and all(type(layer) is StaticLayer and layer.is_initialized for layer in cache.layers)
            and extra <= {"past_key_values", "attention_mask"}
            and (mask is None or mask.ndim == 2)
            and not torch.is_grad_enabled()
            and self.installation.observer is None
        )

    def _attends_fused(self, cache: Any) -> bool:
        """Whether the fused kernel decodes, on one device, and no hook waits for a layer to be called."""
        installation, keys = self.installation, cache.layers[0].keys
        assert installation.plan is not None
        if self.recording is None:
            modules = list(installation.base.modules())
            if any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_hf_hook") for m in modules):
                return False
        if any(layer.keys.device != keys.device for layer in cache.layers):
            return False
        if keys.shape[1] != installation.config.num_key_value_heads:  # some heads are elsewhere
            return False
        query = keys.new_empty(1, 1, 1, keys.shape[3])
        return api.choose(installation.attn_impl, query, installation.plan) == "triton"

    def _step(self, stock: Callable[..., Any], input_ids: Tensor, cache: Any) -> BaseModelOutputWithPast:
        installation, known = self.installation, self.recording
        keys = cache.layers[0].keys
        signature = (
            tuple(input_ids.shape),
            torch.is_inference_mode_enabled(),
            *(x.data_ptr() for layer in cache.layers for x in (layer.keys, layer.values, layer.cumulative_length)),
        )
        if known is not None and known.signature != signature:
            known = None
        assert installation.plan is not None
        prepared = triton.prepare_step(
            installation.plan, len(input_ids), installation.config.num_attention_heads, keys.shape[1], keys.shape[3],
            keys.device, None if known is None else known.prepared,
        )  # fmt: skip

        def run() -> Tensor:
            ids = self.recording.ids if self.recording is not None else input_ids
            out: Tensor = stock(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
            return out

        if known is None or prepared.work is not known.prepared.work:
            self.recording = _Recording(signature, prepared, input_ids.clone())
            return BaseModelOutputWithPast(last_hidden_state=run(), past_key_values=cache)  # compiles the kernels
        known.prepared = prepared
        known.ids.copy_(input_ids)
        if known.replay is None:
            known.replay = record(run)
        return BaseModelOutputWithPast(last_hidden_state=known.replay().clone(), past_key_values=cache)


def can_record(device: torch.device) -> bool:
    """Whether steps on this device can be recorded now."""
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing() and not torch.compiler.is_compiling()


def record(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A CUDA graph of what `run` launches. Its result is overwritten by the next replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
