"""Makes an engine's configuration GALI's: `max_model_len` beyond the window, checks, and what would turn keys off.

All of it happens in `EngineArgs.create_engine_config`, the one place that sees the whole of what was asked for, before
anything is loaded. `LLM`, `AsyncLLM` and the server all go through it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.logger import init_logger
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from vllm_gali.settings import KEY, Settings, engine_of, read_settings

logger = init_logger("vllm.gali")

_LENGTH = "model_max_length"
"""What vLLM takes for a model's length where its configuration has it, whatever max_position_embeddings says."""
_WINDOW = "max_position_embeddings"
_ROPE_PASSES = (
    "enable_qk_norm_rope_fusion",
    "fuse_rope_kvcache",
    "fuse_qk_norm_rope_kvcache",
    "fuse_rope_kvcache_cat_mla",
)


def register() -> None:
    """Wrap `EngineArgs.create_engine_config`, once."""
    stock = EngineArgs.create_engine_config
    if hasattr(stock, "gali"):
        return

    @functools.wraps(stock)
    def create_engine_config(self: EngineArgs, *args: Any, **kwargs: Any) -> VllmConfig:
        settings = read_settings(self.additional_config)
        if settings is None:
            return stock(self, *args, **kwargs)
        return _create(self, settings, lambda: stock(self, *args, **kwargs))

    create_engine_config.gali = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_engine_config


def _create(args: EngineArgs, settings: Settings, create: Callable[[], VllmConfig]) -> VllmConfig:
    """The configuration of an engine with these settings. Raises ValueError for what cannot be."""
    from vllm_gali import checks

    checks.check_version()
    checks.check_method(settings)  # what can be found before anything is fetched
    given = args.hf_overrides
    if isinstance(given, Mapping) and _WINDOW in given and settings.window is None:
        raise ValueError(
            f"gali: hf_overrides changes {_WINDOW}, which methods take for the window that the model was trained on; "
            "give that as gali's window, or leave the override out: max_model_len alone is enough"
        )
    args.hf_overrides = _with_length(given, args.max_model_len)
    try:
        config = create()
    finally:
        args.hf_overrides = given
    checks.check_engine(config)
    window = config.model_config.hf_text_config.max_position_embeddings if settings.window is None else settings.window
    checks.check_method(settings, window, config.model_config.max_model_len)
    _prepare(config, settings)
    logger.info(
        "GALI: method %s, params %s, window %d tokens, max_model_len %d",
        settings.method,
        settings.params,
        engine_of(config).rope.window,
        config.model_config.max_model_len,
    )
    return config


def _with_length(given: Any, length: int | None) -> Any:
    """hf_overrides that let a model be as long as was asked for."""
    if length is None or length <= 0:
        return given
    if callable(given):
        return functools.partial(_overridden, given, length)  # goes to other processes, as a function inside cannot
    return {**given, _LENGTH: length}


def _overridden(overrides: Callable[[Any], Any], length: int, config: Any) -> Any:
    config = overrides(config)
    setattr(config, _LENGTH, length)
    return config


def _prepare(config: VllmConfig, settings: Settings) -> None:
    """Mark the rotary parameters, choose the backend, and switch off what rotates keys as they are written."""
    # vLLM keeps rotary modules, and the backends it chose, by what it was asked for: engines with and without GALI in
    # one process must ask for different ones.
    config.model_config.hf_text_config.rope_parameters[KEY] = settings.mark()
    config.attention_config.backend = AttentionBackendEnum.CUSTOM
    passes = config.compilation_config.pass_config
    for name in _ROPE_PASSES:
        setattr(passes, name, False)
