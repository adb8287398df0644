"""Models, tokenizers and windows for the pipeline; what cannot be loaded is a `UserError` of one line."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pipeline.config import ExperimentConfig
from pipeline.distributed import Workers
from tasks.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from pipeline.engine import ModelEngine

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What decides whether a loaded model serves the next experiment of a sweep too.
ENGINE_KEYS = {
    "model", "method", "params", "max_pe", "ori_max_position_embeddings",
    "seed", "dtype", "device", "attn_impl", "device_map", "tp_plan",
}  # fmt: skip


def read_model_config(model: str) -> PreTrainedConfig:
    """The model's configuration; no weights are read. Raises `UserError`."""
    from transformers import AutoConfig

    from models.DPI.loading import resolve

    def read() -> PreTrainedConfig:
        source = resolve(model)
        config: PreTrainedConfig = AutoConfig.from_pretrained(source.folder, **source.options)
        return config

    return _friendly(model, read)


def read_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises `UserError`."""
    from transformers import AutoTokenizer

    from models.DPI.loading import resolve

    def read() -> PreTrainedTokenizerBase:
        source = resolve(model)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.folder, **source.options)
        return tokenizer

    return _friendly(model, read)


def resolve_window(cfg: ExperimentConfig) -> int:
    """W: what the configuration says, else the model's own."""
    if cfg.options.ori_max_position_embeddings is not None:
        return cfg.options.ori_max_position_embeddings
    return int(read_model_config(cfg.model).max_position_embeddings)


def resolve_dtype(cfg: ExperimentConfig) -> torch.dtype:
    """The type of the model's numbers: what the configuration says, else the default of its device."""
    from models.DPI.loading import DTYPES, default_dtype

    if cfg.dtype is not None:
        return DTYPES[cfg.dtype]
    return _friendly(cfg.model, lambda: default_dtype(cfg.device))


def check_method(cfg: ExperimentConfig, window: int | None) -> None:
    """Raise `UserError` for an unknown method, a wrong parameter, or a target that the method cannot reach.

    Without a window only the method's name and its parameters are checked.
    """
    from models.DPI.dpi import validate_method

    try:
        validate_method(cfg.method, cfg.params, window, cfg.options.max_pe if window is not None else None)
    except ValueError as error:
        raise UserError(str(error)) from None


class EngineLoader:
    """Loads the model of a configuration, and keeps it for the next configuration that needs the same one."""

    def __init__(self, workers: Workers) -> None:
        """workers: this process, which has a device of its own where several share a machine."""
        self._workers = workers
        self._engine: ModelEngine | None = None
        self._key: str | None = None

    def __call__(self, cfg: ExperimentConfig) -> ModelEngine:
        """The engine of a configuration. Raises `UserError` where its model cannot be loaded."""
        key = json.dumps({name: value for name, value in cfg.flat().items() if name in ENGINE_KEYS})
        if self._engine is None or key != self._key:
            self._engine = None  # the old model's memory goes before the new one comes
            self._engine = self._load(cfg)
            self._key = key
        return self._engine

    def _load(self, cfg: ExperimentConfig) -> ModelEngine:
        from models.DPI.dpi import get_model_and_tokenizer
        from pipeline.engine import ModelEngine

        logger.info("loading %s with %s", cfg.model, cfg.method)
        model, tokenizer = _friendly(
            cfg.model,
            lambda: get_model_and_tokenizer(
                cfg.model,
                None,
                cfg.method,
                cfg.params,
                cfg.options.ori_max_position_embeddings,
                dtype=cfg.dtype,
                device=cfg.device or self._workers.device(),
                target_length=cfg.options.max_pe,
                attn_impl=cfg.attn_impl,
                device_map=cfg.device_map,
                tp_plan=cfg.tp_plan,
                seed=cfg.options.seed,
            ),
        )
        return ModelEngine(model, tokenizer)


def _friendly(model: str, load: Callable[[], T]) -> T:
    """What `load` returns; what the hub, the disk or a check complains about becomes one line."""
    try:
        return load()
    except (OSError, ValueError, ImportError) as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"cannot load the model {model!r}: {text[0]}") from None
