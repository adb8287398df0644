"""What an engine with GALI refuses when it starts, each by its name: what would turn keys, or give other numbers."""

from collections.abc import Iterator
from typing import Any

import vllm
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from vllm_gali.gali import build_method, fused
from vllm_gali.paged import IMPLEMENTATIONS
from vllm_gali.settings import Settings

VLLM = "0.32"
"""The minor version whose interfaces this plug-in was written for and tested with."""

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""vLLM's implementations in which every layer rotates whole heads by `get_rope`, and attends right after."""

_CACHE_TYPES = ("auto", "float16", "bfloat16")


def check_version() -> None:
    """Raise ValueError under a version of vLLM that this plug-in does not know."""
    if vllm.__version__.split("+")[0].rpartition(".")[0] != VLLM:
        raise ValueError(
            f"gali: vLLM is {vllm.__version__}, and this plug-in is written for {VLLM}; its interfaces change from one "
            f"minor version to the next. Install vLLM {VLLM}"
        )


def check_method(settings: Settings, window: int | None = None, max_model_len: int | None = None) -> None:
    """Raise ValueError for a method, parameters or window that cannot serve so many tokens; None: not known yet."""
    try:
        method = build_method(settings.method, settings.params, window, max_model_len)
    except ValueError as error:
        raise ValueError(f"gali: {str(error).replace('the target of', 'max_model_len =')}") from None
    if not method.is_causal():
        remedy = "set chunk_coe = 1" if settings.method == "dpi" else "take one that is, such as dpi with chunk_coe = 1"
        raise ValueError(
            f"gali: method {settings.method!r} with params {settings.params} is no causal function of a token's "
            f"prefix, so prefix caching, chunked prefill and preemption would change what it says; {remedy}"
        )
    if method.noise(0) is not None:
        raise ValueError(
            f"gali: params of method {settings.method!r} ask for noise on logits, which serving does not add; "
            "set noise_type = 'no'"
        )


def check_engine(config: VllmConfig) -> None:
    """Raise ValueError, with all reasons in one line, if an engine of this configuration cannot have a method."""
    found = [*_model(config), *_engine(config), *_kernels(config)]
    if found:
        raise ValueError(f"gali: {'; '.join(found)}")


def _model(config: VllmConfig) -> Iterator[str]:
    model = config.model_config
    text: Any = model.hf_text_config
    if model.using_transformers_backend() or model.architecture not in ARCHITECTURES:
        of_transformers = " by transformers' code (model_impl)" if model.using_transformers_backend() else ""
        yield f"the model is a {model.architecture}{of_transformers}; supported are {', '.join(ARCHITECTURES)} of vLLM"
        return
    if model.use_mla:
        yield "the model has multi-head latent attention, whose keys are rotated in a part that all heads share"
    if not getattr(text, "is_causal", True):
        yield "the model's configuration says is_causal = False; methods are for models that attend to the past"
    kinds = sorted(set(getattr(text, "layer_types", None) or ()) - {"full_attention"})
    sliding = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    if kinds or sliding is not None:
        yield (
            f"the model attends within a sliding window (layer_types {', '.join(kinds) or 'none'}, sliding_window = "
            f"{sliding}); set it off by hf_overrides = {{'sliding_window': None}} if the model was trained without"
        )
    yield from _rotary(text)
    if getattr(text, "llama_4_scaling", None) is not None:
        yield "the model scales queries by their positions (llama_4_scaling)"


def _rotary(text: Any) -> Iterator[str]:
    parameters = getattr(text, "rope_parameters", None) or {}
    rope_type = parameters.get("rope_type", "default")
    if rope_type != "default":
        yield f"the model's rotary scheme is rope_type = {rope_type!r}; this plug-in knows 'default' alone"
    for name in ("mrope_section", "use_fope", "rope_dim"):
        if parameters.get(name):
            yield f"the model's rotary scheme has {name} = {parameters[name]!r}"
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        yield f"the model rotates a part of each head (partial_rotary_factor = {parameters['partial_rotary_factor']})"
    if getattr(text, "dual_chunk_attention_config", None):
        yield "the model's configuration has dual_chunk_attention_config, another method for long inputs; remove it"
    if "rope_theta" not in parameters:
        yield "the model's configuration has no rope_theta"
    if getattr(text, "max_position_embeddings", None) is None:
        yield "the model's configuration has no max_position_embeddings"


def _engine(config: VllmConfig) -> Iterator[str]:
    if current_platform.device_type not in IMPLEMENTATIONS:
        yield (
            f"the device is {current_platform.device_type}, and this plug-in has attention for "
            f"{', '.join(IMPLEMENTATIONS)} alone"
        )
    if config.attention_config.backend not in (None, AttentionBackendEnum.CUSTOM):
        yield f"the attention backend {config.attention_config.backend.name} was asked for; GALI brings its own"
    if config.attention_config.backend_per_kind:
        yield "attention backends were asked for by kind (backend_per_kind); GALI brings its own"
    cache = config.cache_config
    if cache.cache_dtype not in _CACHE_TYPES:
        yield f"kv_cache_dtype = {cache.cache_dtype!r}; keys are rotated after they are read, leave it out"
    if cache.kv_sharing_fast_prefill:
        yield "kv_sharing_fast_prefill is set"
    if config.speculative_config is not None:
        yield "speculative decoding is on (speculative_config)"
    if config.kv_transfer_config is not None or cache.kv_offloading_size is not None:
        yield (
            "keys would leave the engine (kv_transfer_config or kv_offloading_size), and another engine would read "
            "them as rotated ones"
        )
    parallel = config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name) > 1:
            yield f"{name} = {getattr(parallel, name)} spreads a request's keys over devices"


def _kernels(config: VllmConfig) -> Iterator[str]:
    """What the kernels for CUDA cannot do, as far as it is known without a GPU: the rest is asked as layers are built,
    in the process that has one.
    """
    if current_platform.device_type != "cuda":
        return
    model = config.model_config
    types = [str(dtype).removeprefix("torch.") for dtype in fused.DTYPES]
    dtype, cache_dtype = str(model.dtype).removeprefix("torch."), config.cache_config.cache_dtype
    if dtype not in types:
        yield f"dtype = {dtype!r}; the kernels for CUDA take {' and '.join(types)}"
    elif cache_dtype in _CACHE_TYPES and cache_dtype not in ("auto", dtype):
        yield f"kv_cache_dtype = {cache_dtype!r} and dtype = {dtype!r}; on CUDA the two must be equal, leave it out"
    if model.get_head_size() not in fused.HEAD_DIMS:
        yield f"the model's head_dim = {model.get_head_size()}; the kernels for CUDA take {_listed(fused.HEAD_DIMS)}"


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
