"""Installing a method on a model of transformers, and taking it off again.

Nothing of the model's own code is replaced. Its rotary module gives way to one that rotates nothing, so that the stock
cache holds keys that are not rotated; the base model's forward pass is planned before it begins; and an attention
function that transformers finds by name rotates and attends. What stays on the model between calls is its
`Installation`, which no call changes.
"""

import contextlib
import inspect
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, StaticCache
from transformers.generation.configuration_utils import GenerationMode

from models.DPI.attention import api
from models.DPI.attention.bands import Plan
from models.DPI.methods import AUTO, Method, Rope, check_window
from models.DPI.patches import caches
from models.DPI.patches.decoding import RecordedDecoding
from models.DPI.patches.families import (
    FULL,
    LOCAL,
    Family,
    calls_interface,
    family_of,
    has_one_plan,
    kinds_of_layers,
)
from models.DPI.patches.forward_pass import (
    NAME,
    NOT_COMPILED,
    ForwardPass,
    Observer,
    run_attention,
    running,
    running_owner,
)
from models.DPI.patches.modules import NoRotation, ReplacedMethod
from models.DPI.patches.rotary import check_scheme, forget_lengths, rope_of, rope_parameters_of
from models.DPI.planning import Padding, make_plan

# Tokens that a feed-forward block takes at a time in a pass beyond the window. Its inner states are several times wider
# than the model, and would be the peak of a long prompt's memory.
_FEED_FORWARD_TOKENS = {"cpu": 4096}
_FEED_FORWARD_TOKENS_ELSEWHERE = 32_768

MOST_LAYERS = 10_000

_ATTRIBUTE = "_gali"


def check_config(config: PreTrainedConfig, method: Method, window: int | None = None) -> None:
    """Raise ValueError if a model of this configuration cannot run the method.

    window: W in tokens, the configuration's max_position_embeddings if None.
    """
    family_of(config)
    layers = getattr(config, "num_hidden_layers", 0)
    if not isinstance(layers, int) or layers > MOST_LAYERS:  # to build them would take for ever
        raise ValueError(f"num_hidden_layers = {layers!r} must be at most {MOST_LAYERS}; check config.json")
    check_scheme(config, method, config.max_position_embeddings if window is None else window)
    kinds = set(kinds_of_layers(config))
    if unknown := sorted(kinds - {FULL, LOCAL}):
        raise ValueError(f"the model has layers of the kind {unknown[0]!r}; methods know {FULL} and {LOCAL}")
    if FULL not in kinds:
        raise ValueError(
            f"every layer attends within sliding_window = {config.sliding_window}, so keys beyond it are never seen; "
            "set sliding_window = None in the model's configuration to attend to all keys"
        )
    if getattr(config, "use_bidirectional_attention", False):
        raise ValueError("use_bidirectional_attention is set; methods are for models that attend to the past")
    if not getattr(config, "is_causal", True):
        raise ValueError("the configuration says is_causal = False; methods are for models that attend to the past")


def check_implementation(attn_impl: str) -> None:
    """Raise ValueError if there is no such implementation."""
    if attn_impl not in api.IMPLEMENTATIONS:
        raise ValueError(f"attn_impl is {attn_impl!r}; it must be one of {', '.join(api.IMPLEMENTATIONS)}")


def install(
    model: PreTrainedModel, method: Method, window: int | None = None, *, attn_impl: str = "auto", seed: int = 0
) -> PreTrainedModel:
    """Let the model attend as the method says. A method that is there already is taken off first.

    window: W in tokens, the model's max_position_embeddings if None. attn_impl: see `attention.api`.
    seed: of the method's noise. Raises ValueError if the model is not supported, or its window not the method's.
    """
    inner = inner_of(model)
    config = inner.config
    check_implementation(attn_impl)
    family_of(config)
    window = config.max_position_embeddings if window is None else window
    if window == AUTO:
        raise ValueError(
            "window = 'auto' is measured with a tokenizer, which install does not have; give "
            "models.DPI.calibration.calibrate(model, tokenizer, W).window"
        )
    check_window(method, window)
    check_config(config, method, window)
    uninstall(model)
    if config._attn_implementation == NAME:
        raise ValueError(
            "the model shares its config object with a model that has a method, so one would attend as the other; "
            "build each model from its own copy (copy.deepcopy(config))"
        )
    family = family_of(config)
    if not family.plain_softmax and config._attn_implementation == "sdpa":
        raise ValueError(
            "the model attends by sdpa, which leaves its soft cap or its sinks out; load it with "
            "attn_implementation = 'eager'"
        )
    base: Any = inner.base_model
    if not calls_interface(base):
        raise ValueError(
            f"transformers {transformers.__version__} does not hand the attention of a {type(base).__name__} to its "
            "attention interface, where methods take it over; take a newer version of transformers"
        )
    installation = Installation(
        family=family,
        kinds=tuple(kinds_of_layers(config)),
        with_head=inner is not base,
        method=method,
        rope=rope_of(config, base.rotary_emb, window),
        attn_impl=attn_impl,
        seed=seed,
        stock_implementation=config._attn_implementation,
    )
    if rope_parameters_of(config)["rope_type"] == "dynamic":
        forget_lengths(base.rotary_emb)
    setattr(base, _ATTRIBUTE, installation)
    config._attn_implementation = NAME
    width = installation.rope.rotary_dim // (2 if installation.family.half_tables else 1)
    base.rotary_emb = NoRotation(base.rotary_emb, width, running)
    for module, name, run in _replaced(inner, installation):
        ReplacedMethod(module, name, run)
    return model


def uninstall(model: PreTrainedModel) -> PreTrainedModel:
    """Give the stock model back; nothing happens to a model without a method.

    Raises ValueError, and changes nothing, if the method was installed on a larger model, or somebody replaced a method
    of one of its modules since.
    """
    inner = inner_of(model)
    installation = installation_of(model)
    if installation is None:
        return model
    base: Any = inner.base_model
    if installation.with_head and inner is base:
        raise ValueError("the method was installed on the model with its head; uninstall it there")
    places = [(module, name) for module, name, _ in _replaced(inner, installation)]
    for module, name in places:
        if not isinstance(vars(module).get(name), ReplacedMethod):
            raise ValueError(
                f"{name} of a {type(module).__name__} was replaced after the method was installed (accelerate does so "
                "where it places a model); take that off first"
            )
    for module, name in places:
        vars(module)[name].remove()
    base.rotary_emb = base.rotary_emb.stock
    inner.config._attn_implementation = installation.stock_implementation
    delattr(base, _ATTRIBUTE)
    return model


@contextlib.contextmanager
def installed(
    model: PreTrainedModel, method: Method, window: int | None = None, *, attn_impl: str = "auto", seed: int = 0
) -> Iterator[PreTrainedModel]:
    """Inside the block the model has the method; behind it, it is the stock model. Arguments as for `install`."""
    install(model, method, window, attn_impl=attn_impl, seed=seed)
    try:
        yield model
    finally:
        uninstall(model)


def installation_of(model: PreTrainedModel) -> "Installation | None":
    """What is installed on a model."""
    found: Installation | None = vars(inner_of(model).base_model).get(_ATTRIBUTE)
    return found


def installed_method(model: PreTrainedModel) -> Method | None:
    """The method that is installed on a model."""
    installation = installation_of(model)
    return None if installation is None else installation.method


def replays_decoding(model: PreTrainedModel, length: int) -> bool:
    """Whether a static cache would let the tokens after a prompt of so many be decoded from a CUDA graph."""
    installation = installation_of(model)
    if installation is None or not has_one_plan(installation.family, installation.kinds):
        return False
    plan = make_plan(installation.method, installation.rope, Padding(None, length, 1), installation.seed)
    return installation.decoding.pays(inner_of(model).base_model, plan, installation.attn_impl)


@contextlib.contextmanager
def observe(model: PreTrainedModel, observer: Observer) -> Iterator[None]:
    """Inside the block `observer` sees what each layer attends with in this thread, before the layer does.

    Raises ValueError if the model has no method.
    """
    installation = installation_of(model)
    if installation is None:
        raise ValueError("the model has no method to observe; install one first (repro_original changes nothing)")
    if LOCAL in installation.kinds:
        raise ValueError("the model has layers that attend locally; only models without them can be observed")
    if not installation.family.plain_softmax:
        raise ValueError("the model's softmax has a soft cap or sinks, which observers are not told of")
    token = _observed.set((installation.owner, observer))
    try:
        yield
    finally:
        _observed.reset(token)


_observed: ContextVar[tuple[str, Observer] | None] = ContextVar("gali_observed", default=None)


@dataclass(frozen=True, eq=False)
class Installation:
    """One model's method, the same for all its calls. It does not know the model.

    kinds: of its layers, see `families`. with_head: what was asked for is more than the base model.
    stock_implementation: what transformers attended with before.
    owner: marks the caches that this method fills.
    """

    family: Family
    kinds: tuple[str, ...]
    with_head: bool
    method: Method
    rope: Rope
    attn_impl: str
    seed: int
    stock_implementation: str
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    decoding: RecordedDecoding = field(default_factory=RecordedDecoding)

    @torch.compiler.disable(reason=NOT_COMPILED)  # type: ignore[untyped-decorator]
    def forward(self, base: nn.Module, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The base model's forward pass, planned before it begins."""
        if args:
            kwargs |= dict(zip(inspect.signature(stock).parameters, args, strict=False))
        forward_pass = self._begin(base, kwargs)
        with forward_pass.run():
            output = self.decoding.run(base, stock, forward_pass, kwargs, self._plan)
        found = output if isinstance(output, tuple) else (caches.cache_in(output),)
        for cache in found:
            caches.mark(cache, self.owner, running_owner)
        return output

    def check_generation(
        self, model: nn.Module, stock: Callable[..., Any], mode: GenerationMode, *args: Any, **kwargs: Any
    ) -> Any:
        """`generate`'s check of what it is asked for. Raises ValueError for what would change the text."""
        if mode == GenerationMode.ASSISTED_GENERATION and not self.method.is_causal():
            raise ValueError(
                f"assisted generation feeds several tokens at a time, and under method {self.method.name!r} with "
                f"{self.method!r} a token's logits depend on how many are fed: the text would be another; generate "
                "without assistant_model and prompt_lookup_num_tokens, or take a method that is causal (GALI is with "
                "chunk_coe = 1)"
            )
        asked: Any = args[0] if args else kwargs.get("generation_config")
        pieces = getattr(asked, "prefill_chunk_size", None)
        if pieces is not None and not self.method.is_causal():
            raise ValueError(
                f"prefill_chunk_size = {pieces} cuts the prompt, and under method {self.method.name!r} with "
                f"{self.method!r} a token's logits depend on where; leave it out, or take a method that is causal"
            )
        if getattr(asked, "use_cache", None) is False and not self.method.is_causal():
            raise ValueError(
                f"use_cache = False feeds the whole text anew for every token, and under method {self.method.name!r} "
                f"with {self.method!r} a token's logits depend on how many are fed at once: the text would be another; "
                "leave it out, or take a method that is causal"
            )
        cache = getattr(asked, "cache_implementation", None)
        device = next(model.parameters()).device.type
        if "offloaded" in (cache or "") and device == "cpu":
            raise ValueError(
                f"cache_implementation = {cache!r} keeps a GPU's keys and values on the CPU, and the model is on the "
                "CPU; leave it out"
            )
        return stock(mode, *args, **kwargs)

    def _plan(self, padding: Padding) -> Plan:
        return make_plan(self.method, self.rope, padding, self.seed)

    def _begin(self, base: Any, kwargs: Mapping[str, Any]) -> ForwardPass:
        """The pass of a call with these arguments. Raises ValueError for arguments that no method can serve."""
        if base.config._attn_implementation != NAME:
            raise ValueError(
                f"the attention implementation was set to {base.config._attn_implementation!r} on a model that has a "
                "method, whose keys it would not rotate; uninstall the method first, and install it again after"
            )
        ids, embeddings, mask = (kwargs.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask"))
        cache = caches.cache_in(kwargs)
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise ValueError(
                "attention_mask has four dimensions, and methods need to know which tokens are real; give one of two, "
                "(batch, tokens)"
            )
        if False in (kwargs.get("is_causal"), getattr(base.config, "is_causal", True)):
            raise ValueError("is_causal = False: methods are for models that attend to the past; leave it out")
        given = embeddings if ids is None else ids
        if given is None:
            raise ValueError("give input_ids or inputs_embeds")
        caches.check(cache, self.owner)
        if LOCAL in self.kinds and isinstance(cache, StaticCache):
            raise ValueError(
                "a static cache of a model with layers that attend locally keeps their keys in a ring, at places that "
                "methods do not know; use the default cache"
            )
        padding = Padding.read(
            mask, given.shape[0], caches.length_of(cache), given.shape[1], kwargs.get("position_ids")
        )
        observed = _observed.get()
        return ForwardPass(
            self.owner,
            self.decoding.planned(padding) or self._plan(padding),
            padding,
            family=self.family,
            kinds=self.kinds,
            rope=self.rope,
            attn_impl=self.attn_impl,
            stock_implementation=self.stock_implementation,
            stock_rotary=base.rotary_emb.stock,
            position_ids=kwargs.get("position_ids"),
            dtype=base.get_input_embeddings().weight.dtype if embeddings is None else embeddings.dtype,
            has_cache=cache is not None,
            observer=observed[1] if observed is not None and observed[0] == self.owner else None,
        )


def _feed_forward(module: nn.Module, stock: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A feed-forward block, (B, T, hidden) -> the same, some tokens at a time: each token's result is its own.

    Not where gradients are wanted, which keep the inner states anyway, and whose second run must do as the first.
    """
    size = _FEED_FORWARD_TOKENS.get(x.device.type, _FEED_FORWARD_TOKENS_ELSEWHERE)
    forward_pass = running()
    if forward_pass is None or forward_pass.runs_stock or x.shape[1] <= size or torch.is_grad_enabled():
        return stock(x)
    out = torch.empty_like(x)
    for first in range(0, x.shape[1], size):
        out[:, first : first + size] = stock(x[:, first : first + size])
    return out


def inner_of(model: Any) -> Any:
    """The model itself where an adapter of PEFT wraps it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _replaced(inner: Any, installation: "Installation") -> Iterator[tuple[nn.Module, str, Callable[..., Any]]]:
    """Modules of a model, their methods that give way, and what runs in place of them."""
    base = inner.base_model
    yield base, "forward", installation.forward
    for layer in base.layers:
        if not installation.family.hands_on:
            yield layer.self_attn, "forward", run_attention
        block: Any = getattr(layer, "mlp", None)
        # Routers of experts are watched by transformers, token for token.
        if type(block).__name__.endswith("MLP") and not hasattr(block, "experts"):
            yield block, "forward", _feed_forward
    if installation.with_head and hasattr(type(inner), "generate"):
        yield inner, "create_masks_for_generate", _keep_padding_mask
        yield inner, "_valid_auto_compile_criteria", _never_compile
        yield inner, "_validate_generation_mode", installation.check_generation


def _keep_padding_mask(
    model: nn.Module, stock: Callable[..., Any], *args: Any, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor | None:
    """With a static cache `generate` makes the 4D mask before the forward pass, where padding can no longer be read."""
    return attention_mask


def _never_compile(*args: Any, **kwargs: Any) -> bool:
    """With a static cache `generate` compiles the forward pass; the plan is Python and differs for every token."""
    return False
