"""Engines for the pipeline: a model is loaded once for all experiments in a row that it serves."""

from __future__ import annotations

import gc
import json
import logging
import sys
from typing import TYPE_CHECKING, Any, Self

from pipeline.checks import Start, check_start, load_options
from pipeline.config import ExperimentConfig
from pipeline.distributed import Workers
from pipeline.model_files import one_line, read_generation_config, read_tokenizer, resolve_model
from tasks.base import Engine
from tasks.errors import UserError

if TYPE_CHECKING:
    from pipeline.engine import ModelEngine
    from pipeline.served import ServedEngine

logger = logging.getLogger(__name__)

# What decides whether a loaded model serves the next experiment of a sweep too.
ENGINE_KEYS = {
    "model", "model_revision", "method", "params", "max_pe", "ori_max_position_embeddings",
    "seed", "dtype", "device", "attn_impl", "device_map", "tp_plan", "trust_remote_code",
    "engine", "base_url", "served_model", "vllm",
}  # fmt: skip


def engine_key(cfg: ExperimentConfig) -> str:
    """What two experiments have in common that one loaded model serves."""
    return json.dumps({name: value for name, value in cfg.flat().items() if name in ENGINE_KEYS})


class EngineLoader:
    """Loads the model of a configuration, and keeps it for the next configuration that needs the same one.

    As a context it lets the last one go: an engine that the interpreter's end finds running may end in an abort.
    """

    def __init__(self, workers: Workers) -> None:
        """workers: this process, which has a device of its own where several share a machine."""
        self._workers = workers
        self._engine: Engine | None = None
        self._key: str | None = None
        self._checked: str | None = None

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """See `release`."""
        self.release()

    def check(self, cfg: ExperimentConfig) -> Start:
        """`check_start` for this process's device, once: a load of the same model does not check it again."""
        start = check_start(cfg, self._workers.device())
        self._checked = engine_key(cfg)
        return start

    def __call__(self, cfg: ExperimentConfig) -> Engine:
        """The engine of a configuration. Raises `UserError` where its model cannot be loaded."""
        key = engine_key(cfg)
        if self._engine is None or key != self._key:
            self._let_go()  # the old model's memory goes before the new one comes
            self._engine = self._load(cfg) if cfg.engine == "transformers" else self._served(cfg)
            self._key = key
        if cfg.engine == "transformers":
            engine: Any = self._engine
            engine.share_prefixes(cfg.share_prefixes if cfg.batch_size == 1 else False)
        return self._engine

    def with_model(self, cfg: ExperimentConfig) -> ModelEngine:
        """The engine of a configuration whose engine is transformers: one that holds its model."""
        from pipeline.engine import ModelEngine

        engine = self(cfg)
        assert isinstance(engine, ModelEngine), cfg.engine
        return engine

    def release(self) -> None:
        """Let the model go, whose memory another needs."""
        import torch

        self._let_go()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _let_go(self) -> None:
        close = getattr(self._engine, "close", None)
        self._engine = self._key = None
        if close is not None:
            close()

    def _served(self, cfg: ExperimentConfig) -> Engine:
        if self._workers.processes > 1:
            theirs = "starts its own processes (tensor_parallel_size in [vllm])"
            if cfg.engine == "openai":
                theirs = "spreads the records itself"
            raise UserError(f"engine = {cfg.engine!r} {theirs}; run one process of this")
        return served_engine(cfg)

    def _load(self, cfg: ExperimentConfig) -> ModelEngine:
        from models.DPI.dpi import get_model_and_tokenizer
        from pipeline.engine import ModelEngine

        device = self._workers.device()
        if self._checked != engine_key(cfg):
            self.check(cfg)  # what the user can mend is said as it is, and not as a fault of the model's files
        logger.info("loading %s with %s", cfg.model, cfg.method)
        _leave_out_bars()
        model, tokenizer = one_line(
            cfg.model,
            lambda: get_model_and_tokenizer(
                cfg.model,
                None,
                cfg.method,
                cfg.params,
                cfg.options.ori_max_position_embeddings,
                target_length=cfg.options.max_pe,
                seed=cfg.options.seed,
                revision=cfg.model_revision,
                trust_remote_code=cfg.trust_remote_code,
                **load_options(cfg, device),
            ),
        )
        return ModelEngine(model, tokenizer)


def served_engine(cfg: ExperimentConfig) -> ServedEngine:
    """The engine over vLLM, a server of it or one in this process, that runs what the configuration asks for.

    Raises `UserError` where it does not.
    """
    from models.DPI.methods import build_method, resolve_params
    from pipeline.client import Client
    from pipeline.engine import ends_of
    from pipeline.openai_engine import OpenAIEngine
    from pipeline.served import Expected
    from pipeline.vllm_engine import VllmEngine, begin, check_installed

    start = check_start(cfg)
    if cfg.engine == "vllm":
        check_installed()
    method = build_method(cfg.method, resolve_params(cfg.method, cfg.params, start.window))
    folder = resolve_model(cfg.model, cfg.model_revision).folder
    expected = Expected(cfg, start, method, folder)
    tokenizer = read_tokenizer(cfg.model, cfg.model_revision, trust_remote_code=cfg.trust_remote_code)
    ends = ends_of(read_generation_config(cfg, start.config), tokenizer)
    vocab_size = start.config.get_text_config().vocab_size
    logger.info("%s with %s: %s", cfg.model, cfg.method, cfg.base_url or cfg.engine)
    if cfg.base_url is not None:
        return OpenAIEngine(Client(cfg.base_url), expected, tokenizer, ends, vocab_size, cfg.options.max_pe)
    llm = one_line(cfg.model, lambda: begin(cfg, start, method, folder))
    return VllmEngine(llm, expected, tokenizer, ends, vocab_size)


def measured_window(cfg: ExperimentConfig, device: str | None, window: int) -> dict[str, Any]:
    """A model's calibration (`models.DPI.calibration.Calibration`) as JSON values. window: W in tokens.

    device: as for `check_start`. Raises `UserError` where the model cannot be loaded or measured.
    """
    from models.DPI.calibration import calibrate
    from models.DPI.dpi import get_model_and_tokenizer
    from models.DPI.methods.original import Original
    from models.DPI.patches.Llama import uninstall

    def measure() -> dict[str, Any]:
        model, tokenizer = get_model_and_tokenizer(
            cfg.model,
            None,
            Original.name,
            {},
            window,
            trust_remote_code=cfg.trust_remote_code,
            revision=cfg.model_revision,
            **load_options(cfg, device),
        )
        return calibrate(uninstall(model), tokenizer, window).model_dump(mode="json")

    return one_line(cfg.model, measure)


def _leave_out_bars() -> None:
    """Leave transformers' bars out unless details are logged, and downloads' where nobody sees a bar move."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    if not logger.isEnabledFor(logging.DEBUG):
        disable_progress_bar()  # those of downloads too
        if sys.stderr.isatty():
            enable_progress_bars()
