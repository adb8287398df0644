"""Installing a method on a model of transformers, and taking it off again. The only file that knows its internals.

Nothing of the model's own code is replaced but its rotary module. The new one turns nothing, so that the stock cache
holds un-rotated keys; an attention function, registered under a name of the model's own, rotates and attends; the
mask function of the same name sees padding and lengths once a forward pass, so it plans the pass for all layers.
"""

import contextlib
import copy
import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from models.DPI.attention import api
from models.DPI.attention.bands import Plan
from models.DPI.methods import Method, Rope
from models.DPI.patches.decoding import RecordedDecoding
from models.DPI.patches.no_rotation import NoRotation
from models.DPI.planning import Padding, make_plan

logger = logging.getLogger(__name__)

# Architectures whose attention is Llama's: one rotary module, halves rotated, causal, no soft cap. All are tested.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# Rotary schemes whose frequencies do not change with the input.
STATIC_ROPE_TYPES = ("default", "linear", "llama3", "yarn")

# Called with a layer's number, queries (B, H, T, D) and keys (B, Hkv, N, D), both un-rotated, the plan, the scaling.
Observer = Callable[[int, Tensor, Tensor, Plan, float], None]

# Tokens that a feed-forward block takes at a time in a pass beyond the window. Its inner states are several times wider
# than the model, and would be the peak of a long prompt's memory.
_FEED_FORWARD_TOKENS = {"cpu": 4096}
_FEED_FORWARD_TOKENS_ELSEWHERE = 32_768

_ATTRIBUTE = "_gali"
_PREFIX = "gali_"  # names with "flash" in them or a slash mean something to transformers
_numbers = itertools.count()


def check_config(config: PreTrainedConfig, method: Method) -> None:
    """Raise ValueError if a model of this configuration cannot run the method."""
    if config.model_type not in MODEL_TYPES:
        raise ValueError(f"model_type is {config.model_type!r}; methods can be installed on {', '.join(MODEL_TYPES)}")
    rope_type = _rope_parameters(config)["rope_type"]
    if rope_type not in STATIC_ROPE_TYPES:
        raise ValueError(
            f"the model's rotary scheme is rope_type = {rope_type!r}, which changes with the input; "
            f"supported are {', '.join(STATIC_ROPE_TYPES)}"
        )
    if method.needs_theta and rope_type != "default":
        raise ValueError(
            f"method {method.name!r} changes the base of an unscaled rotary scheme, and the model's is rope_type = "
            f"{rope_type!r}; use rope_type = 'default', or one of the methods that change positions"
        )
    layer_types = getattr(config, "layer_types", None) or []
    sliding = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if any(kind != "full_attention" for kind in layer_types) or (sliding and not layer_types):
        raise ValueError(
            f"the model attends within sliding_window = {sliding}, so keys beyond it are never seen; "
            "set sliding_window = None in the model's configuration to attend to all keys"
        )


def check_implementation(attn_impl: str) -> None:
    """Raise ValueError if there is no such implementation."""
    if attn_impl not in api.IMPLEMENTATIONS:
        raise ValueError(f"attn_impl is {attn_impl!r}; it must be one of {', '.join(api.IMPLEMENTATIONS)}")


def rope_of(config: PreTrainedConfig, rotary: nn.Module, window: int) -> Rope:
    """The rotary scheme of a model, computed anew in fp32 (a model cast to bf16 may hold rounded frequencies)."""
    fresh: Any = type(rotary)(config=config)
    parameters = _rope_parameters(config)
    return Rope(
        inv_freq=fresh.inv_freq.float().cpu(),
        window=window,
        theta=parameters["rope_theta"] if parameters["rope_type"] == "default" else None,
        scaling=float(fresh.attention_scaling),
    )


def install(
    model: PreTrainedModel, method: Method, window: int | None = None, *, attn_impl: str = "auto", seed: int = 0
) -> PreTrainedModel:
    """Let the model attend as the method says. A method that is there already is taken off first.

    window: W in tokens, the model's max_position_embeddings if None. attn_impl: see `attention.api`.
    seed: of the method's noise. Raises ValueError if the model is not supported.
    """
    uninstall(model)
    check_config(model.config, method)
    if str(model.config._attn_implementation).startswith(_PREFIX):
        raise ValueError(
            "the model shares its config object with a model that has a method, so one would attend as the other; "
            "build each model from its own copy (copy.deepcopy(config))"
        )
    check_implementation(attn_impl)
    window = model.config.max_position_embeddings if window is None else window
    installation = _Installation(model, method, window, attn_impl, seed)
    setattr(model, _ATTRIBUTE, installation)
    installation.enter()
    return model


def uninstall(model: PreTrainedModel) -> PreTrainedModel:
    """Give the stock model back; nothing happens to a model without a method."""
    installation = getattr(model, _ATTRIBUTE, None)
    if installation is not None:
        installation.leave()
        delattr(model, _ATTRIBUTE)
    return model


def installed_method(model: PreTrainedModel) -> Method | None:
    """The method that is installed on a model."""
    installation = getattr(model, _ATTRIBUTE, None)
    return None if installation is None else installation.method


def replays_decoding(model: PreTrainedModel, length: int) -> bool:
    """Whether a static cache would let the tokens after a prompt of so many be decoded from a CUDA graph."""
    installation = getattr(model, _ATTRIBUTE, None)
    return installation is not None and installation.decoding.pays(length)


@contextlib.contextmanager
def observe(model: PreTrainedModel, observer: Observer) -> Iterator[None]:
    """Inside the block `observer` sees what each layer attends with, before the layer does.

    Raises ValueError if the model has no method.
    """
    installation = getattr(model, _ATTRIBUTE, None)
    if installation is None:
        raise ValueError("the model has no method to observe; install one first (repro_original changes nothing)")
    installation.observer = observer
    try:
        yield
    finally:
        installation.observer = None


def _rope_parameters(config: PreTrainedConfig) -> dict[str, Any]:
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    parameters.setdefault("rope_type", "default")
    parameters.setdefault("rope_theta", getattr(config, "rope_theta", 10_000.0))
    return parameters


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _keep_padding_mask(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """With a static cache `generate` makes the 4D mask before the forward pass, where padding can no longer be read."""
    return attention_mask


def _never_compile(*args: Any, **kwargs: Any) -> bool:
    """With a static cache `generate` compiles the forward pass; the plan is Python and differs for every token."""
    return False


# What `generate` looks up on the model before its own.
_GENERATION_HOOKS = {
    "create_masks_for_generate": _keep_padding_mask,
    "_valid_auto_compile_criteria": _never_compile,
}


class _Installation:
    """One model's method, and what it knows of the forward pass under way."""

    def __init__(self, model: Any, method: Method, window: int, attn_impl: str, seed: int) -> None:
        self.model = model
        self.base = model.base_model
        self.config = model.config
        self.method = method
        self.attn_impl = attn_impl
        self.seed = seed
        self.stock_rotary: nn.Module = self.base.rotary_emb
        self.stock_implementation = model.config._attn_implementation
        self.rope = rope_of(model.config, self.stock_rotary, window)
        self.name = f"{_PREFIX}{next(_numbers)}"
        self.stock_attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.stock_implementation, eager_attention_forward)
        self.stock_mask = ALL_MASK_ATTENTION_FUNCTIONS[self.stock_implementation]
        self.plan: Plan | None = None
        self.planned = False  # whether the mask function was called for the pass that begins
        self.padding = Padding(None, 0, 0)
        self.key_rotation: tuple[Tensor, Tensor] | None = None
        self.observer: Observer | None = None
        self.ahead = False  # whether the pass was planned before it began
        self.whole = False  # whether attention gets the whole static cache
        self.decoding = RecordedDecoding(self)
        self.forwards: list[tuple[nn.Module, Any]] = []  # modules and what their instances had as `forward`

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Installation":
        """For a deep copy of the model, which attends under a name of its own."""
        new = object.__new__(_Installation)
        memo[id(self)] = new
        vars(new).update(copy.deepcopy(vars(self), memo))
        new.name = f"{_PREFIX}{next(_numbers)}"
        new.register()
        return new

    def register(self) -> None:
        AttentionInterface.register(self.name, self.attend)
        AttentionMaskInterface.register(self.name, self.see_mask)
        self.config._attn_implementation = self.name

    def enter(self) -> None:
        self.register()
        self.base.rotary_emb = NoRotation(self.stock_rotary, self.rope.rotary_dim, self.see_positions)
        for name, function in _GENERATION_HOOKS.items():
            setattr(self.model, name, function)
        self._wrap(self.base, self.decoding.forward)
        for layer in self.base.layers:
            self._wrap(layer.mlp, self.feed_forward)

    def _wrap(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Let `forward` run in place of the module's own, which it gets as its first argument."""
        self.forwards.append((module, vars(module).get("forward")))
        module.forward = functools.partial(forward, module.forward)

    def leave(self) -> None:
        self.base.rotary_emb = self.stock_rotary
        self.config._attn_implementation = self.stock_implementation
        for registry in (AttentionInterface, AttentionMaskInterface):
            registry._global_mapping.pop(self.name, None)
        for name in _GENERATION_HOOKS:
            delattr(self.model, name)
        for module, forward in self.forwards:
            if forward is None:
                del module.forward
            else:
                module.forward = forward  # accelerate's, where it placed the model

    def see_mask(self, batch_size: int, q_length: int, kv_length: int, **kwargs: Any) -> Tensor | None:
        """The mask function: plan the forward pass. Returns the stock mask where the stock attention will run."""
        if kwargs.get("mask_function", causal_mask_function) is not causal_mask_function:
            raise ValueError(
                "position_ids or a mask function describe packed or partly visible sequences; give one sequence a "
                "row, with attention_mask for padding"
            )
        if not self.ahead:
            self.plan_pass(kwargs.get("attention_mask"), batch_size, int(kwargs.get("q_offset", 0)), q_length)
        self.planned = True
        if self.runs_stock:
            return self.stock_mask(batch_size=batch_size, q_length=q_length, kv_length=kv_length, **kwargs)
        return None

    def plan_pass(self, attention_mask: Tensor | None, batch_size: int, past: int, new: int) -> Plan:
        """Plan the forward pass of `new` tokens after `past` ones."""
        self.padding = Padding.read(attention_mask, batch_size, past, new)
        self.plan = self.make_plan(self.padding)
        return self.plan

    def make_plan(self, padding: Padding) -> Plan:
        """The plan of a pass, without beginning it."""
        return make_plan(self.method, self.rope, padding, self.seed)

    def planned_ahead(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block the forward pass finds its plan made."""
        return self._during("ahead")

    def whole_cache(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block attention gets a static cache as it is, with the zeros of its free places."""
        return self._during("whole")

    @contextlib.contextmanager
    def _during(self, flag: str) -> Iterator[None]:
        setattr(self, flag, True)
        try:
            yield
        finally:
            setattr(self, flag, False)

    @property
    def runs_stock(self) -> bool:
        """Whether this pass is left to the stock attention: same result to the bit, unless another was asked for."""
        assert self.plan is not None
        return self.plan.plain and self.attn_impl in ("auto", "sdpa", "reference")

    def see_positions(self, x: Tensor, position_ids: Tensor) -> None:
        """The rotary module's call: rotary tables of all keys for a pass that the stock attention runs."""
        if not self.planned:
            raise ValueError(
                "attention_mask has four dimensions, and methods need to know which tokens are real; give one of two, "
                "(batch, tokens)"
            )
        self.planned = False
        if not self.runs_stock:
            return
        if self.padding.past:
            position_ids = self.padding.key_positions(x.device)
        self.key_rotation = self.stock_rotary(x, position_ids)

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The attention function: (B, H, T, D), (B, Hkv, N, D) un-rotated -> (B, T, H, D) and the weights."""
        if dropout:
            raise ValueError(f"attention_dropout = {dropout}: methods are for inference; call model.eval()")
        assert self.plan is not None
        if kwargs.get("output_attentions") and self.attn_impl != "reference":
            _warn_once(
                "output_attentions=True: this model does not form the attention weights; load it with "
                "models.DPI.dpi_withoutflash"
            )
        n = key.shape[2] if self.whole else self.padding.past + query.shape[2]  # a static cache is longer
        if self.observer is not None:
            self.observer(module.layer_idx, query, key[:, :, :n], self.plan, scaling)
        if self.runs_stock:
            if key.shape[2] > n and (attention_mask is None or isinstance(attention_mask, Tensor)):
                key, value = key[:, :, :n], value[:, :, :n]
                attention_mask = None if attention_mask is None else attention_mask[..., :n]
            query, key = self._rotate_as_stock(query, key)
            return self.stock_attention(
                module, query, key, value, attention_mask, dropout=0.0, scaling=scaling, **kwargs
            )
        out, weights = api.attend(
            query,
            key[:, :, :n],
            value[:, :, :n],
            self.plan,
            scaling=scaling,
            layer=module.layer_idx,
            impl=self.attn_impl,
            need_weights=self.attn_impl == "reference",
        )
        return out.transpose(1, 2).contiguous(), weights

    def feed_forward(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A feed-forward block, (B, T, hidden) -> the same, some tokens at a time: each token's result is its own."""
        size = _FEED_FORWARD_TOKENS.get(x.device.type, _FEED_FORWARD_TOKENS_ELSEWHERE)
        if self.plan is None or self.runs_stock or x.shape[1] <= size:
            return forward(x)
        out = torch.empty_like(x)
        for first in range(0, x.shape[1], size):
            out[:, first : first + size] = forward(x[:, first : first + size])
        return out

    def _rotate_as_stock(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The stock model's arithmetic, in its dtype, on all keys instead of the new ones."""
        assert self.key_rotation is not None
        cos, sin = (table.to(query.device)[:, None] for table in self.key_rotation)  # (B or 1, 1, N, D)
        n, t = cos.shape[2], query.shape[2]
        turned = query * cos[:, :, n - t :] + _rotate_half(query) * sin[:, :, n - t :]
        if key.shape[2] == n:
            return turned, key * cos + _rotate_half(key) * sin
        head = key[:, :, :n]
        return turned, torch.cat((head * cos + _rotate_half(head) * sin, key[:, :, n:]), dim=2)


def _rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)
