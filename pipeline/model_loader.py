"""Models, tokenizers and windows for the pipeline; what cannot be loaded is a `UserError` of one line."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.config import ExperimentConfig
from pipeline.distributed import Workers
from tasks.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from models.DPI.short_names import Source
    from pipeline.engine import ModelEngine

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What decides whether a loaded model serves the next experiment of a sweep too.
ENGINE_KEYS = {
    "model", "method", "params", "max_pe", "ori_max_position_embeddings",
    "seed", "dtype", "device", "attn_impl", "device_map", "tp_plan", "trust_remote_code",
}  # fmt: skip


def read_model_config(model: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's configuration; no weights are read. Raises `UserError`."""
    from transformers import AutoConfig

    config: PreTrainedConfig = _read(model, AutoConfig, trust_remote_code)
    return config


def read_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises `UserError`."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _read(model, AutoTokenizer, trust_remote_code)
    return tokenizer


def _read(model: str, kind: Any, trust_remote_code: bool) -> Any:
    """What one of transformers' Auto classes reads of a model."""
    source = _resolve(model)
    # False and not left out: transformers then asks, and a "y" on standard input would run a model's own Python.
    return _friendly(
        model,
        lambda: kind.from_pretrained(source.folder, **source.options, trust_remote_code=trust_remote_code),
    )


def _resolve(model: str) -> Source:
    """Where a model is. A name that is none is the user's mistake, which needs no traceback."""
    from models.DPI.loading import resolve

    try:
        return resolve(model)
    except ValueError as error:
        raise UserError(_said(model, error)) from None


def resolve_window(cfg: ExperimentConfig) -> int:
    """W: what the configuration says, else the model's own."""
    if cfg.options.ori_max_position_embeddings is not None:
        return cfg.options.ori_max_position_embeddings
    from models.DPI.loading import window_of

    config = read_model_config(cfg.model, trust_remote_code=cfg.trust_remote_code)
    return _friendly(cfg.model, lambda: window_of(config))


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
        placed = cfg.device_map is not None or cfg.tp_plan is not None  # which then say where the model goes
        model, tokenizer = _friendly(
            cfg.model,
            lambda: get_model_and_tokenizer(
                cfg.model,
                None,
                cfg.method,
                cfg.params,
                cfg.options.ori_max_position_embeddings,
                dtype=cfg.dtype,
                device=cfg.device or (None if placed else self._workers.device()),
                target_length=cfg.options.max_pe,
                attn_impl=cfg.attn_impl,
                device_map=cfg.device_map,
                tp_plan=cfg.tp_plan,
                seed=cfg.options.seed,
                trust_remote_code=cfg.trust_remote_code,
            ),
        )
        return ModelEngine(model, tokenizer)


def _friendly(model: str, load: Callable[[], T]) -> T:
    """What `load` returns. Whatever ends it becomes one line: a model's files can be wrong in any way.

    The `UserError` has the error itself as its cause, whose traceback `pipeline.cli` keeps: it may be a bug of ours.
    """
    try:
        return load()
    except Exception as error:
        raise UserError(_said(model, error)) from error


def _said(model: str, error: Exception) -> str:
    """The first line of what an error says, with its kind where that does not go without saying."""
    text = (str(error).strip().splitlines() or [""])[0]
    kind = "" if text and isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: "
    return f"cannot load the model {model!r}: {kind}{text}"
