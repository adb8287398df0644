"""Models, tokenizers and windows for the pipeline; what cannot be loaded is a `UserError` of one line."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from models import hub
from pipeline.config import ExperimentConfig, source_of
from pipeline.distributed import Workers
from pipeline.progress import check_tracker
from tasks.base import Engine
from tasks.errors import UserError, said_of

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

    from models.DPI.short_names import Source
    from pipeline.engine import ModelEngine
    from pipeline.served import ServedEngine

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What decides whether a loaded model serves the next experiment of a sweep too.
ENGINE_KEYS = {
    "model", "model_revision", "method", "params", "max_pe", "ori_max_position_embeddings",
    "seed", "dtype", "device", "attn_impl", "device_map", "tp_plan", "trust_remote_code",
    "engine", "base_url", "served_model", "vllm",
}  # fmt: skip


WEIGHTS_FILES = ("config.json", "*.safetensors", "*.gguf")
"""What in a folder decides over a model's numbers."""


@dataclass(frozen=True)
class Start:
    """What a run has when its model may be loaded: nothing that can be known without the weights speaks against it.

    config: the model's. window: W in tokens. device: the one that the model goes to, or prefers where it is placed on
    several. local: whether its weights lie on this machine already, in a folder. revision: the commit of a model from
    the hub.
    """

    config: PreTrainedConfig
    window: int
    device: torch.device
    dtype: torch.dtype
    local: bool
    revision: str | None = None


def check_request(cfg: ExperimentConfig) -> None:
    """Raise `UserError` for what cannot be, whatever the model is: method, parameters, reach, implementation, device.

    What needs the window waits for `check_start` where the configuration leaves it to the model.
    """
    from models.DPI.loading import check_asked, check_options

    window = cfg.options.ori_max_position_embeddings
    with _mistakes():
        check_asked(cfg.method, cfg.params, window, None, cfg.tp_plan)
    check_method(cfg, None if window == "auto" else window)
    with _mistakes():
        check_options(**_options(cfg, None))
    if cfg.engine == "vllm":
        from pipeline.vllm_engine import check_installed

        check_installed()


def without_devices(cfg: ExperimentConfig) -> ExperimentConfig:
    """The configuration as this machine can judge it where another one runs it: that one has other devices.

    Raises `UserError` for an implementation that no machine has.
    """
    from models.DPI.patches.Llama import check_implementation

    with _mistakes():
        check_implementation(cfg.attn_impl)
    return cfg.model_copy(update={"device": None, "attn_impl": "auto"})


def engine_key(cfg: ExperimentConfig) -> str:
    """What two experiments have in common that one loaded model serves."""
    return json.dumps({name: value for name, value in cfg.flat().items() if name in ENGINE_KEYS})


def check_start(
    cfg: ExperimentConfig,
    device: str | None = None,
    *,
    config: PreTrainedConfig | None = None,
    upper_bound: bool = False,
) -> Start:
    """What a run of this configuration begins with, its model's configuration read, without weights.

    device: of this process where several share a machine, see `Workers.device`. config: the model's, where it was
    read before. upper_bound: whether a smaller window than this one will be measured. Raises `UserError` for all that
    would keep the run from its first record, but for faults of the weights themselves.
    """
    from models.DPI.loading import check_attention, check_options, window_of
    from models.DPI.methods import build_method, resolve_params
    from models.DPI.patches.Llama import check_config
    from pipeline import prefixes

    check_request(cfg)
    with _mistakes():
        found, dtype = check_options(**_options(cfg, device))
    source = resolve_model(cfg.model, cfg.model_revision)
    if config is None:
        config = read_model_config(cfg.model, cfg.model_revision, trust_remote_code=cfg.trust_remote_code)
    asked = cfg.options.ori_max_position_embeddings
    window = asked if isinstance(asked, int) else _friendly(cfg.model, lambda: window_of(config))
    check_method(cfg, window, upper_bound=upper_bound or asked == "auto")
    method = build_method(cfg.method, resolve_params(cfg.method, cfg.params, window))
    with _mistakes(f"the model {cfg.model!r}: "):
        check_config(config, method, window)
    if cfg.engine != "transformers" and (not method.is_causal() or method.noise(0) is not None):
        raise UserError(
            f"engine = {cfg.engine!r} runs methods that are causal and add no noise, and {cfg.method!r} with params "
            f"{cfg.params} is none (dpi: chunk_coe = 1, noise_type = 'no'); change it, or take engine = 'transformers'"
        )
    if cfg.share_prefixes is True and (reason := prefixes.why_not(method, config)) is not None:
        raise UserError(f"share_prefixes = true: {reason}")
    if cfg.attn_impl != "auto":
        with _mistakes():
            check_attention(config, method, window, cfg.attn_impl, found, dtype)
    local = Path(source.folder).is_dir()
    return Start(config, window, found, dtype, local, model_commit(cfg.model, cfg.model_revision))


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
            **_options(cfg, device),
        )
        return calibrate(uninstall(model), tokenizer, window).model_dump(mode="json")

    return _friendly(cfg.model, measure)


def check_method(cfg: ExperimentConfig, window: int | None, *, upper_bound: bool = False) -> None:
    """Raise `UserError` for an unknown method, a wrong parameter, or a target that is out of reach or within W.

    Without a window only the method's name and its parameters are checked.
    """
    from models.DPI.methods import build_method, resolve_params
    from models.DPI.methods.base import MAX_TOKENS

    target = cfg.options.max_pe
    with _mistakes():
        params = resolve_params(cfg.method, cfg.params, MAX_TOKENS if window is None else window)
        method = build_method(cfg.method, params, window, target if window is not None else None)
    if window is not None and not upper_bound and method.extends and target < window:
        raise UserError(
            f"max_pe = {target} is below the window of {window} tokens, where {cfg.method} has nothing to extend; "
            "raise max_pe, or lower ori_max_position_embeddings (method = 'repro_original' runs as it is)"
        )


def check_requests(experiments: Sequence[ExperimentConfig], path: Path, *, elsewhere: bool = False) -> bool:
    """`check_tensor_parallel`, `check_request` and `check_tracker` of all experiments of a file, which errors name.

    elsewhere: whether other machines run them, see `without_devices`.
    """
    with said_of(str(path)):
        tensor_parallel = check_tensor_parallel(experiments)
    for cfg in experiments:
        with said_of(source_of(cfg, experiments, path)):
            check_request(without_devices(cfg) if elsewhere else cfg)
            check_tracker(cfg)
    return tensor_parallel


def check_tensor_parallel(experiments: Sequence[ExperimentConfig]) -> bool:
    """Whether the experiments of a run hold pieces of one model. Raises `UserError` where some do and some do not."""
    found = {cfg.tp_plan is not None for cfg in experiments}
    if len(found) > 1:
        raise UserError("tp_plan must be given for all experiments of a run or for none")
    return found == {True}


def model_commit(model: str, revision: str | None = None) -> str | None:
    """The commit of a model of the hub; None for a folder. Raises `UserError`."""
    from models.DPI.loading import commit_of

    source = resolve_model(model, revision)
    return None if Path(source.folder).is_dir() else _friendly(model, lambda: commit_of(source))


def weights_digests(model: str) -> dict[str, str] | None:
    """Of a model in a folder, its configuration and files of weights, each with its hash; None for one of the hub.

    That has a commit. Raises `UserError` for what cannot be read.
    """
    folder = Path(resolve_model(model).folder)
    if not folder.is_dir():
        return None
    found = {}
    for path in sorted(path for pattern in WEIGHTS_FILES for path in folder.glob(pattern)):
        try:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        except OSError as error:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return found


def read_model_config(model: str, revision: str | None = None, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's configuration; no weights are read. Raises `UserError`."""
    from transformers import AutoConfig

    config: PreTrainedConfig = _read(model, revision, AutoConfig, trust_remote_code)
    return config


def read_tokenizer(
    model: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises `UserError`."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _read(model, revision, AutoTokenizer, trust_remote_code)
    return tokenizer


def _read(model: str, revision: str | None, kind: Any, trust_remote_code: bool) -> Any:
    """What one of transformers' Auto classes reads of a model."""
    source = resolve_model(model, revision)
    # False and not left out: transformers then asks, and a "y" on standard input would run a model's own Python.
    return _friendly(
        model,
        lambda: kind.from_pretrained(source.folder, **source.options, trust_remote_code=trust_remote_code),
    )


def resolve_model(model: str, revision: str | None = None) -> Source:
    """Where a model is. Raises `UserError`: a name that is none is the user's mistake, which needs no traceback."""
    from models.DPI.loading import resolve

    with _mistakes():
        return resolve(model, revision)


def _options(cfg: ExperimentConfig, device: str | None) -> dict[str, Any]:
    """What `models.DPI.loading.check_options` and `get_model_and_tokenizer` both take. device: as for `check_start`."""
    placed = cfg.device_map is not None or cfg.tp_plan is not None  # which then say where the model goes
    return {
        "dtype": cfg.dtype,
        "device": cfg.device or (None if placed else device),
        "attn_impl": cfg.attn_impl,
        "device_map": cfg.device_map,
        "tp_plan": cfg.tp_plan,
    }


class EngineLoader:
    """Loads the model of a configuration, and keeps it for the next configuration that needs the same one."""

    def __init__(self, workers: Workers) -> None:
        """workers: this process, which has a device of its own where several share a machine."""
        self._workers = workers
        self._engine: Engine | None = None
        self._key: str | None = None
        self._checked: str | None = None

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
        model, tokenizer = _friendly(
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
                **_options(cfg, device),
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
    llm = _friendly(cfg.model, lambda: begin(cfg, start, method, folder))
    return VllmEngine(llm, expected, tokenizer, ends, vocab_size)


def read_generation_config(cfg: ExperimentConfig, config: PreTrainedConfig) -> GenerationConfig:
    """What a model is loaded with: its generation_config.json, or what its configuration says. Raises `UserError`."""
    from transformers import GenerationConfig

    source = resolve_model(cfg.model, cfg.model_revision)

    def read() -> GenerationConfig:
        try:
            return GenerationConfig.from_pretrained(source.folder, **source.options)
        except OSError:
            return GenerationConfig.from_model_config(config)

    return _friendly(cfg.model, read)


class UnreachableModelError(UserError):
    """A model of the hub, where the hub does not answer and the cache does not have the model."""


def _leave_out_bars() -> None:
    """Leave transformers' bars out unless details are logged, and downloads' where nobody sees a bar move."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    if not logger.isEnabledFor(logging.DEBUG):
        disable_progress_bar()  # those of downloads too
        if sys.stderr.isatty():
            enable_progress_bars()


@contextlib.contextmanager
def _mistakes(before: str = "") -> Iterator[None]:
    """A `ValueError` of our own checks, which names key, value and bound, as a `UserError` without a traceback."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{before}{error}") from None


def _friendly(model: str, load: Callable[[], T]) -> T:
    """What `load` returns. Whatever ends it becomes one line: a model's files can be wrong in any way.

    The `UserError` has the error itself as its cause, whose traceback `pipeline.cli` keeps: it may be a bug of ours.
    """
    try:
        return load()
    except Exception as error:
        if isinstance(error, OSError) and resolve_model(model).options.get("local_files_only"):
            said = f"{hub.silence()}, and the cache does not have all of it"
            raise UnreachableModelError(f"cannot load the model {model!r}: {said}") from None
        raise UserError(_said(model, error)) from error


def _said(model: str, error: Exception) -> str:
    """The first line of what an error says, with its kind where that does not go without saying."""
    text = (str(error).strip().splitlines() or [""])[0]
    kind = "" if text and isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: "
    return f"cannot load the model {model!r}: {kind}{text}"
