"""Models, tokenizers and windows for the pipeline; what cannot be loaded is a `UserError` of one line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pipeline.config import ExperimentConfig
from pipeline.distributed import Workers
from tasks.errors import UserError

if TYPE_CHECKING:
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
        return AutoConfig.from_pretrained(source.folder, **source.options)

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
    if cfg.ori_max_position_embeddings is not None:
        return cfg.ori_max_position_embeddings
    return int(read_model_config(cfg.model).max_position_embeddings)


def check_method(cfg: ExperimentConfig, window: int | None) -> None:
    """Raise `UserError` for an unknown method, a wrong parameter, or a target that the method cannot reach.

    Without a window only the method's name and its parameters are checked.
    """
    from models.DPI.dpi import validate_method

    try:
        validate_method(cfg.method, cfg.params, window, cfg.max_pe if window is not None else None)
    except ValueError as error:
        raise UserError(str(error)) from None


class EngineLoader:
    """Loads the model of a configuration, and keeps it for the next configuration that needs the same one."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._engine: ModelEngine | None = None

    def __call__(self, cfg: ExperimentConfig) -> ModelEngine:
        from pipeline.engine import ModelEngine

        if self._engine is not None and _engine_key(self._engine.cfg) == _engine_key(cfg):
            self._engine = ModelEngine(cfg, self._engine.model, self._engine.tokenizer)
        else:
            self._engine = None  # the old model's memory goes before the new one comes
            self._engine = self._load(cfg)
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
                cfg.ori_max_position_embeddings,
                dtype=cfg.dtype,
                device=cfg.device or self._workers.device(),
                target_length=cfg.max_pe,
                attn_impl=cfg.attn_impl,
                device_map=cfg.device_map,
                tp_plan=cfg.tp_plan,
                seed=cfg.seed,
            ),
        )
        return ModelEngine(cfg, model, tokenizer)


def _engine_key(cfg: ExperimentConfig) -> str:
    return cfg.model_dump_json(include=ENGINE_KEYS)


def _friendly(model: str, load: Callable[[], T]) -> T:
    """What `load` returns; what the hub, the disk or a check complains about becomes one line."""
    try:
        return load()
    except (OSError, ValueError, ImportError) as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"cannot load the model {model!r}: {text[0]}") from None
