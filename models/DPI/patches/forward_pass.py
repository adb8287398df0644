"""A call of the base model as a value: made before the call, handed to its layers, gone after it.

Layers get it as a keyword argument, so that a layer that runs again (gradient checkpointing) has the pass that it had,
and two threads on one model have one each. What transformers calls without arguments of ours, the mask function and
feed-forward blocks, finds the pass of its thread by `running`.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from models.DPI.attention import api
from models.DPI.attention.bands import Plan
from models.DPI.planning import Padding

logger = logging.getLogger(__name__)

# Under which transformers finds the functions below. Names with "flash" in them or a slash mean something to it.
NAME = "gali"
ARGUMENT = "forward_pass"

# Called with a layer's number, queries (B, H, T, D) and keys (B, Hkv, N, D), both un-rotated, the plan, the scaling.
Observer = Callable[[int, Tensor, Tensor, Plan, float], None]


class ForwardPass:
    """What the layers attend with. Not a dataclass: wrappers of modules, FSDP's above all, look into those and cast.

    owner: the installation's mark, see `caches`. plan, padding: of this call. attn_impl: see `attention.api`.
    stock_implementation: transformers' name of what attends where the plan is plain. stock_rotary: the model's rotary
    module; position_ids (B or 1, T) and dtype, of the hidden states, are what it is called with.
    whole_cache: attention gets a static cache as it is, with the zeros of its free places.
    """

    def __init__(
        self,
        owner: str,
        plan: Plan,
        padding: Padding,
        *,
        attn_impl: str,
        stock_implementation: str,
        stock_rotary: nn.Module,
        position_ids: Tensor | None,
        dtype: torch.dtype,
        observer: Observer | None = None,
        whole_cache: bool = False,
    ) -> None:
        """See the class."""
        self.owner = owner
        self.plan = plan
        self.padding = padding
        self.attn_impl = attn_impl
        self.stock_implementation = stock_implementation
        self.observer = observer
        self.whole_cache = whole_cache
        self._rotary = stock_rotary
        self._position_ids = position_ids
        self._dtype = dtype
        self._rotations: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def with_whole_cache(self) -> "ForwardPass":
        """The same pass for a static cache that attention gets as it is."""
        return ForwardPass(
            self.owner,
            self.plan,
            self.padding,
            attn_impl=self.attn_impl,
            stock_implementation=self.stock_implementation,
            stock_rotary=self._rotary,
            position_ids=self._position_ids,
            dtype=self._dtype,
            observer=self.observer,
            whole_cache=True,
        )

    @functools.cached_property
    def runs_stock(self) -> bool:
        """Whether this pass is left to the stock attention: same result to the bit, unless another was asked for."""
        return self.plan.plain and self.attn_impl in ("auto", "sdpa", "reference")

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Inside the block this is the pass that `running` finds."""
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)

    def attend(
        self,
        layer: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, H, T, D), (B, Hkv, N, D) un-rotated -> (B, T, H, D) and the weights where they are formed."""
        number: int = layer.layer_idx  # type: ignore[assignment]
        n = key.shape[2] if self.whole_cache else self.padding.past + query.shape[2]  # a static cache is longer
        if self.observer is not None:
            self.observer(number, query, key[:, :, :n], self.plan, scaling)
        if self.runs_stock:
            if key.shape[2] > n and (attention_mask is None or isinstance(attention_mask, Tensor)):
                key, value = key[:, :, :n], value[:, :, :n]
                attention_mask = None if attention_mask is None else attention_mask[..., :n]
            query, key = self._rotate_as_stock(query, key)
            stock = ALL_ATTENTION_FUNCTIONS.get_interface(self.stock_implementation, eager_attention_forward)
            found: tuple[Tensor, Tensor | None] = stock(
                layer, query, key, value, attention_mask, dropout=0.0, scaling=scaling, **kwargs
            )
            return found
        out, weights = api.attend(
            query,
            key[:, :, :n],
            value[:, :, :n],
            self.plan,
            scaling=scaling,
            layer=number,
            impl=self.attn_impl,
            need_weights=self.attn_impl == "reference",
        )
        return out.transpose(1, 2).contiguous(), weights

    def _rotate_as_stock(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The stock model's arithmetic, in its dtype, on all keys instead of the new ones."""
        cos, sin = self._rotation(query.device)  # (B or 1, 1, N, D)
        n, t = cos.shape[2], query.shape[2]
        rotated = query * cos[:, :, n - t :] + _rotate_half(query) * sin[:, :, n - t :]
        if key.shape[2] == n:
            return rotated, key * cos + _rotate_half(key) * sin
        head = key[:, :, :n]
        return rotated, torch.cat((head * cos + _rotate_half(head) * sin, key[:, :, n:]), dim=2)

    def _rotation(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The stock model's cosines and sines of all keys, (B or 1, 1, N, D)."""
        if device not in self._rotations:
            position_ids = self._position_ids
            if self.padding.past:
                position_ids = self.padding.key_positions(device)
            elif position_ids is None:
                position_ids = torch.arange(self.padding.new)[None]
            cos, sin = self._rotary(torch.empty((), dtype=self._dtype, device=device), position_ids.to(device))
            self._rotations[device] = cos.to(device)[:, None], sin.to(device)[:, None]
        return self._rotations[device]


_running: ContextVar[ForwardPass | None] = ContextVar("gali_forward_pass", default=None)


def running() -> ForwardPass | None:
    """The pass under way in this thread."""
    return _running.get()


def running_owner() -> str | None:
    """Its owner."""
    found = _running.get()
    return None if found is None else found.owner


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function that transformers calls in every layer."""
    forward_pass: ForwardPass | None = kwargs.pop(ARGUMENT, None)
    if forward_pass is None:
        raise ValueError(_NO_METHOD)
    if dropout:
        raise ValueError(f"attention_dropout = {dropout}: methods attend without; set attention_dropout = 0.0")
    if kwargs.get("output_attentions") and forward_pass.attn_impl != "reference":
        _warn_once(
            "output_attentions=True: this model does not form the attention weights; load it with "
            "models.DPI.dpi_withoutflash"
        )
    return forward_pass.attend(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def _make_mask(batch_size: int, q_length: int, kv_length: int, **kwargs: Any) -> Tensor | None:
    """The mask function: the stock one's mask where the stock attention will run."""
    forward_pass = running()
    if forward_pass is None:
        raise ValueError(_NO_METHOD)
    if kwargs.get("mask_function", causal_mask_function) is not causal_mask_function:
        raise ValueError("a mask function describes partly visible sequences; methods attend to all earlier tokens")
    if not forward_pass.runs_stock:
        return None
    stock = ALL_MASK_ATTENTION_FUNCTIONS[forward_pass.stock_implementation]
    mask: Tensor | None = stock(batch_size=batch_size, q_length=q_length, kv_length=kv_length, **kwargs)
    return mask


_NO_METHOD = (
    "this model was made from the configuration of a model that has a method, and has none itself; give it a copy with "
    "config._attn_implementation = 'sdpa', or install a method on it before the other"
)

AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _make_mask)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)
