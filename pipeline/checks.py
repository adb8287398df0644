"""What speaks against a run, as far as it can be known without weights; each is a `UserError` of one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import ExperimentConfig, source_of
from pipeline.model_files import model_commit, one_line, own_mistakes, read_model_config, resolve_model
from pipeline.progress import check_tracker
from tasks.errors import UserError, said_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig


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


def check_request(cfg: ExperimentConfig) -> None:
    """Raise `UserError` for what cannot be, whatever the model is: method, parameters, reach, implementation, device.

    What needs the window waits for `check_start` where the configuration leaves it to the model.
    """
    from models.DPI.loading import check_asked, check_options

    window = cfg.options.ori_max_position_embeddings
    with own_mistakes():
        check_asked(cfg.method, cfg.params, window, None, cfg.tp_plan)
    check_method(cfg, None if window == "auto" else window)
    with own_mistakes():
        check_options(**load_options(cfg, None))
    if cfg.engine == "vllm":
        from pipeline.vllm_engine import check_installed

        check_installed()


def without_devices(cfg: ExperimentConfig) -> ExperimentConfig:
    """The configuration as this machine can judge it where another one runs it: that one has other devices.

    Raises `UserError` for an implementation that no machine has.
    """
    from models.DPI.patches.Llama import check_implementation

    with own_mistakes():
        check_implementation(cfg.attn_impl)
    return cfg.model_copy(update={"device": None, "attn_impl": "auto"})


def check_method(cfg: ExperimentConfig, window: int | None, *, upper_bound: bool = False) -> None:
    """Raise `UserError` for an unknown method, a wrong parameter, or a target that is out of reach or within W.

    Without a window only the method's name and its parameters are checked.
    """
    from models.DPI.methods import build_method, resolve_params
    from models.DPI.methods.base import MAX_TOKENS

    target = cfg.options.max_pe
    with own_mistakes():
        params = resolve_params(cfg.method, cfg.params, MAX_TOKENS if window is None else window)
        method = build_method(cfg.method, params, window, target if window is not None else None)
    if window is not None and not upper_bound and method.extends and target < window:
        raise UserError(
            f"max_pe = {target} is below the window of {window} tokens, where {cfg.method} has nothing to extend; "
            "raise max_pe, or lower ori_max_position_embeddings (method = 'repro_original' runs as it is)"
        )


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
    with own_mistakes():
        found, dtype = check_options(**load_options(cfg, device))
    source = resolve_model(cfg.model, cfg.model_revision)
    if config is None:
        config = read_model_config(cfg.model, cfg.model_revision, trust_remote_code=cfg.trust_remote_code)
    asked = cfg.options.ori_max_position_embeddings
    window = asked if isinstance(asked, int) else one_line(cfg.model, lambda: window_of(config))
    check_method(cfg, window, upper_bound=upper_bound or asked == "auto")
    method = build_method(cfg.method, resolve_params(cfg.method, cfg.params, window))
    with own_mistakes(f"the model {cfg.model!r}: "):
        check_config(config, method, window)
    if cfg.engine != "transformers" and (not method.is_causal() or method.noise(0) is not None):
        raise UserError(
            f"engine = {cfg.engine!r} runs methods that are causal and add no noise, and {cfg.method!r} with params "
            f"{cfg.params} is none (dpi: chunk_coe = 1, noise_type = 'no'); change it, or take engine = 'transformers'"
        )
    if cfg.share_prefixes is True and (reason := prefixes.why_not(method, config)) is not None:
        raise UserError(f"share_prefixes = true: {reason}")
    if cfg.attn_impl != "auto":
        with own_mistakes():
            check_attention(config, method, window, cfg.attn_impl, found, dtype)
    local = Path(source.folder).is_dir()
    return Start(config, window, found, dtype, local, model_commit(cfg.model, cfg.model_revision))


def load_options(cfg: ExperimentConfig, device: str | None) -> dict[str, Any]:
    """What `models.DPI.loading.check_options` and `get_model_and_tokenizer` both take. device: as for `check_start`."""
    placed = cfg.device_map is not None or cfg.tp_plan is not None  # which then say where the model goes
    return {
        "dtype": cfg.dtype,
        "device": cfg.device or (None if placed else device),
        "attn_impl": cfg.attn_impl,
        "device_map": cfg.device_map,
        "tp_plan": cfg.tp_plan,
    }
