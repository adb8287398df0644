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

from models.DPI.attention import api
from models.DPI.attention.bands import Plan
from models.DPI.methods.base import Rope
from models.DPI.methods.original import Original
from models.DPI.patches.families import (
    FULL,
    LOCAL,
    Family,
    eager_attention_of,
    has_one_plan,
    in_halves,
    rotate_as_stock,
)
from models.DPI.patches.local import local_plan
from models.DPI.patches.rotary import has_rotary_by_kind
from models.DPI.planning import Padding, make_plan

logger = logging.getLogger(__name__)

# Under which transformers finds the functions below. Names with "flash" in them or a slash mean something to it.
NAME = "gali"
ARGUMENT = "forward_pass"
# What torch.compile says of the functions that it leaves alone.
NOT_COMPILED = (
    "a method of models.DPI plans each forward pass in Python, so the model runs as it is; leave fullgraph=True out, "
    "or uninstall the method before compiling"
)

MOST_MASKED = 1 << 24
"""Elements of the stock attention's mask of padding, (B, 1, T, N), beyond which it goes row by row."""

# Called with a layer's number, queries (B, H, T, D) and keys (B, Hkv, N, D), both un-rotated, the plan, the scaling.
Observer = Callable[[int, Tensor, Tensor, Plan, float], None]


class ForwardPass:
    """What the layers attend with. Not a dataclass: wrappers of modules, FSDP's above all, look into those and cast.

    owner: the installation's mark, see `caches`. plan, padding: of this call. family, kinds of layers, rope: of the
    model. attn_impl: see `attention.api`.
    stock_implementation: transformers' name of what attends where the plan is plain. stock_rotary: the model's rotary
    module; position_ids (B or 1, T) and dtype, of the hidden states, are what it is called with.
    has_cache: one was given. whole_cache: attention gets a static cache as it is, with the zeros of its free places.
    """

    def __init__(
        self,
        owner: str,
        plan: Plan,
        padding: Padding,
        *,
        family: Family,
        kinds: tuple[str, ...],
        rope: Rope,
        attn_impl: str,
        stock_implementation: str,
        stock_rotary: nn.Module,
        position_ids: Tensor | None,
        dtype: torch.dtype,
        observer: Observer | None = None,
        has_cache: bool = True,
        whole_cache: bool = False,
    ) -> None:
        """See the class."""
        self.owner = owner
        self.plan = plan
        self.padding = padding
        self.family = family
        self.kinds = kinds
        self.rope = rope
        self.attn_impl = attn_impl
        self.stock_implementation = stock_implementation
        self.observer = observer
        self.has_cache = has_cache
        self.whole_cache = whole_cache
        self._rotary = stock_rotary
        self._position_ids = position_ids
        self._dtype = dtype
        self._rotations: dict[tuple[torch.device, str], tuple[Tensor, Tensor]] = {}
        self._local_plans: dict[tuple[int, int], Plan] = {}

    def with_whole_cache(self) -> "ForwardPass":
        """The same pass for a static cache that attention gets as it is."""
        twin = object.__new__(ForwardPass)
        twin.__dict__.update(self.__dict__, whole_cache=True, _rotations={})
        return twin

    @property
    def has_one_plan(self) -> bool:
        """Whether all layers attend by the plan."""
        return has_one_plan(self.family, self.kinds)

    @functools.cached_property
    def runs_stock(self) -> bool:
        """Whether this pass is left to the stock attention: same result to the bit, unless another was asked for."""
        return self.plan.plain and self.attn_impl in ("auto", "sdpa", "reference")

    @functools.cached_property
    def runs_stock_by_rows(self) -> bool:
        """Whether the stock attention gets each row without its padding, and no mask, in layers that see all keys.

        Its mask of padding would be large, and sdpa with a mask takes twice the time and more. Row by row the
        arithmetic is that of a batch of one. Later pieces of a prompt need a mask in any case.
        """
        spans, new = self.padding.spans, self.padding.new
        return (
            self.runs_stock
            and self.stock_implementation == "sdpa"
            and spans is not None
            and self.padding.past == 0
            and len(spans) * new * new > MOST_MASKED
        )

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
        """(B, H, T, D), (B, Hkv, N, D) un-rotated -> (B, T, H, D) and the weights where they are formed.

        kwargs: what else the layer hands to transformers' attention; softcap and s_aux, its sinks, are heeded.
        """
        number: int = layer.layer_idx  # type: ignore[assignment]
        n = key.shape[2] if self.whole_cache else self.padding.past + query.shape[2]  # a static cache is longer
        local = self.kinds[number] != FULL
        if not self.has_cache and key.shape[2] != query.shape[2]:
            raise ValueError(
                f"layer {number} has {key.shape[2]} keys for {query.shape[2]} tokens, and no cache was given; "
                "give the cache as past_key_values"
            )
        rotates = self.family.rotates(layer)
        plan = self.plan if rotates else self._plan_without_rotation
        if self.observer is not None:
            self.observer(number, self._in_halves(query), self._in_halves(key[:, :, :n]), plan, scaling)
        if self.runs_stock or (local and self.family.plain_softmax):
            if key.shape[2] > n and (attention_mask is None or isinstance(attention_mask, Tensor)):
                key, value = key[:, :, :n], value[:, :, :n]
                attention_mask = None if attention_mask is None else attention_mask[..., :n]
            if rotates:
                query, key = self._rotate_as_stock(layer, query, key, self.kinds[number])
            stock = ALL_ATTENTION_FUNCTIONS.get_interface(self.stock_implementation, eager_attention_of(layer))
            attend = functools.partial(stock, layer, dropout=0.0, scaling=scaling, **kwargs)
            if self.runs_stock_by_rows and not local:
                return self._by_rows(attend, query, key, value), None
            found: tuple[Tensor, Tensor | None] = attend(query, key, value, attention_mask)
            return found
        if local:
            n, plan = key.shape[2], self._local_plan(key.shape[2], kwargs["sliding_window"])
        out, weights = api.attend(
            self._in_halves(query),
            self._in_halves(key[:, :, :n]),
            value[:, :, :n],
            plan,
            scaling=scaling,
            softcap=kwargs.get("softcap"),
            sinks=kwargs.get("s_aux"),
            layer=number,
            impl=self.attn_impl,
            need_weights=self.attn_impl == "reference",
        )
        return out.transpose(1, 2).contiguous(), weights

    def _by_rows(self, attend: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, H, T, D), rotated, nothing before -> (B, T, H, D): each row by its own tokens, 0 where it is padding."""
        out = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        for (left, length), rows in self.padding.rows().items():
            at = slice(left, left + length)
            out[rows, at] = attend(query[rows, :, at], key[rows, :, at], value[rows, :, at], None)[0]
        return out

    def _in_halves(self, x: Tensor) -> Tensor:
        """Queries or keys with the components that rotate together D/2 apart, as tables have them."""
        return in_halves(x, self.rope.rotary_dim) if self.family.interleaved else x

    @functools.cached_property
    def _plan_without_rotation(self) -> Plan:
        """For layers that do not rotate: all earlier keys, at no position."""
        still = Rope(torch.zeros_like(self.rope.inv_freq), self.rope.window)
        return make_plan(Original(), still, self.padding, seed=0)

    def _local_plan(self, held: int, size: int) -> Plan:
        """For layers that attend to `size` tokens and have `held` keys, at the model's own positions."""
        slot = (held, size)
        if slot not in self._local_plans:
            self._local_plans[slot] = local_plan(self.rope, self.padding, held, size)
        return self._local_plans[slot]

    def _rotate_as_stock(self, layer: nn.Module, query: Tensor, key: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """The stock model's arithmetic, in its dtype, on all keys instead of the new ones.

        A cache of local layers holds the last keys only; a static one more than there are.
        """
        cos, sin = self._rotation(query.device, kind)  # (B or 1, n, rotary_dim)
        n, t = cos.shape[1], query.shape[2]
        held = min(key.shape[2], n)
        half = self.family.half_tables
        rotated = rotate_as_stock(layer, query, cos[:, n - t :], sin[:, n - t :], half)
        head = rotate_as_stock(layer, key[:, :, :held], cos[:, n - held :], sin[:, n - held :], half)
        return rotated, head if key.shape[2] == held else torch.cat((head, key[:, :, held:]), dim=2)

    def _rotation(self, device: torch.device, kind: str) -> tuple[Tensor, Tensor]:
        """The stock model's cosines and sines of all keys for a kind of layers, (B or 1, n, rotary_dim)."""
        slot = (device, kind)
        if slot not in self._rotations:
            position_ids = self._position_ids
            if self.padding.past:
                position_ids = self.padding.key_positions(device)
            elif position_ids is None:
                position_ids = torch.arange(self.padding.new)[None]
            x = torch.empty((), dtype=self._dtype, device=device)
            of_kind = (kind,) if has_rotary_by_kind(self._rotary) else ()
            cos, sin = self._rotary(x, position_ids.to(device), *of_kind)
            self._rotations[slot] = cos.to(device), sin.to(device)
        return self._rotations[slot]


_running: ContextVar[ForwardPass | None] = ContextVar("gali_forward_pass", default=None)


def running() -> ForwardPass | None:
    """The pass under way in this thread."""
    return _running.get()


def running_owner() -> str | None:
    """Its owner."""
    found = _running.get()
    return None if found is None else found.owner


@torch.compiler.disable(reason=NOT_COMPILED)  # type: ignore[untyped-decorator]
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
    under_way = running()
    if forward_pass is None and under_way is not None and not under_way.family.hands_on:
        forward_pass = under_way  # see `run_attention`
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
    local = kwargs.get("local_size") is not None  # some models ask for it without having such layers
    if local and LOCAL not in forward_pass.kinds:
        return None
    if not forward_pass.family.plain_softmax and not forward_pass.runs_stock:
        return None  # those layers attend over bands, too
    if not local and kwargs.get("mask_function", causal_mask_function) is not causal_mask_function:
        raise ValueError("a mask function describes partly visible sequences; methods attend to all earlier tokens")
    if not local and (not forward_pass.runs_stock or forward_pass.runs_stock_by_rows):
        return None
    stock = ALL_MASK_ATTENTION_FUNCTIONS[forward_pass.stock_implementation]
    mask: Tensor | None = stock(batch_size=batch_size, q_length=q_length, kv_length=kv_length, **kwargs)
    return mask


def run_attention(
    attention: nn.Module,
    stock: Callable[..., Any],
    *args: Any,
    position_embeddings: tuple[Tensor, Tensor],
    **kwargs: Any,
) -> Any:
    """An attention module whose layer hands nothing on: the pass comes with the cosines that the pass made."""
    forward_pass: ForwardPass | None = getattr(position_embeddings[0], ARGUMENT, None) or running()
    with contextlib.nullcontext() if forward_pass is None else forward_pass.run():
        return stock(*args, position_embeddings=position_embeddings, **kwargs)


_NO_METHOD = (
    "this model was made from the configuration of a model that has a method, and has none itself, or its forward pass "
    "was replaced after its method was installed; give it a copy with config._attn_implementation = 'sdpa', or install "
    "the method last"
)

AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _make_mask)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
