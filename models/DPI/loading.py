"""From a name to a model with a method on it: the work behind `dpi.py` and `dpi_withoutflash.py`."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from models import hub
from models.DPI.attention.api import choose
from models.DPI.calibration import calibrate
from models.DPI.methods import AUTO, Method, Rope, build_method, check_auto_window, resolve_params
from models.DPI.methods.base import MAX_TOKENS, frequencies_of
from models.DPI.patches.families import head_dim_of, stock_attention_of
from models.DPI.patches.Llama import check_config, check_implementation, install
from models.DPI.patches.rotary import rope_parameters_of
from models.DPI.planning import Padding, make_plan
from models.DPI.short_names import SHORT_NAMES, Source

logger = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Names of device maps that accelerate makes."""


def load(
    model_name: str,
    config: PreTrainedConfig | None,
    method: str,
    params: Mapping[str, Any] | None,
    max_position_embeddings: int | Literal["auto"] | None,
    *,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    target_length: int | None,
    attn_impl: str,
    stock_attention: str,
    seed: int,
    revision: str | None,
    device_map: str | dict[str, Any] | None,
    tp_plan: str | None,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """See `models.DPI.dpi.get_model_and_tokenizer`. stock_attention: transformers' implementation within the window."""
    # What can be checked without the model, before anything is fetched.
    check_asked(method, params, max_position_embeddings, target_length, tp_plan)
    device, dtype = check_options(
        attn_impl=attn_impl, dtype=dtype, device=device, device_map=device_map, tp_plan=tp_plan
    )
    source = resolve(model_name, revision)
    # False and not left out: transformers then asks, and a "y" on standard input would run a model's own Python.
    options = {**source.options, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(source.folder, **options) if config is None else config
    measured = max_position_embeddings == AUTO
    window = window_of(config) if measured or max_position_embeddings is None else int(max_position_embeddings)
    built = build_method(method, params, window, target_length)
    check_config(config, built, window)
    placement: dict[str, Any] = {}
    if tp_plan is not None:
        placement["tp_plan"] = tp_plan
    elif device_map is not None:
        placement["device_map"] = device_map
    check_shards(source)
    tokenizer = AutoTokenizer.from_pretrained(source.folder, **options)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source.folder,
        config=config,
        dtype=dtype,
        attn_implementation=stock_attention_of(config, stock_attention),
        output_loading_info=True,
        use_safetensors=True,  # pickled weights can run code of their own; they are not read
        **placement,
        **options,
    )
    model, report = loaded
    absent = sorted(map(str, report["missing_keys"]))
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise ValueError(
            f"model: the weights of {model_name} lack {', '.join(absent[:3])}{more}, which would be random; "
            "fetch or save the model anew"
        )
    if not placement:
        model.to(device)
    model.eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # batches and generation need one
    tokenizer.padding_side = "left"
    if measured:
        window = calibrate(model, tokenizer, window).window
        built = build_method(method, params, window, target_length)
    return install(model, built, window, attn_impl=attn_impl, seed=seed), tokenizer


def check_asked(
    method: str,
    params: Mapping[str, Any] | None,
    window: int | Literal["auto"] | None,
    target_length: int | None,
    tp_plan: str | None = None,
) -> None:
    """Raise ValueError for a method, parameters, a window or a target that cannot be, whatever the model is."""
    if window == AUTO:
        check_auto_window(method)
        if tp_plan is not None:
            raise ValueError(
                "window = 'auto' does not go with tp_plan: the model is measured in one process; "
                "call models.DPI.calibration.calibrate there, and give the number"
            )
    if isinstance(window, int):
        build_method(method, params, window, target_length)
    else:
        build_method(method, resolve_params(method, params, MAX_TOKENS))


def check_options(
    *,
    attn_impl: str,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    device_map: str | dict[str, Any] | None,
    tp_plan: str | None,
) -> tuple[torch.device, torch.dtype]:
    """The device and the type of numbers that options of `load` mean. Raises ValueError for what cannot be.

    With `device_map` or `tp_plan`, which place the model, the device is the one that they prefer.
    """
    check_implementation(attn_impl)
    if device is not None and (device_map is not None or tp_plan is not None):
        raise ValueError(
            f"device = {device!r} goes with neither device_map nor tp_plan, which place the model; give one"
        )
    if tp_plan not in (None, "auto"):
        raise ValueError(f"tp_plan is {tp_plan!r}; it must be 'auto', the model's own plan")
    if device_map is not None:
        _check_device_map(device_map)
    found = _device(device)
    return found, _dtype(dtype, found)


def _check_device_map(device_map: str | dict[str, Any]) -> None:
    """Raise ValueError for a name that is none, and for devices that are not there."""
    if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
        try:
            _device(device_map)
        except ValueError:
            raise ValueError(
                f"device_map is {device_map!r}; it must be one of {', '.join(DEVICE_MAPS)}, a device that this machine "
                "has, or a table of modules and devices"
            ) from None
    for module, device in device_map.items() if isinstance(device_map, dict) else ():
        if device == "disk":
            continue
        try:
            _device(f"cuda:{device}" if isinstance(device, int) else device)
        except ValueError as error:
            raise ValueError(f"device_map of {module!r}: {error}") from None


def check_attention(
    config: PreTrainedConfig, method: Method, window: int, attn_impl: str, device: torch.device, dtype: torch.dtype
) -> str:
    """The implementation that a model of this configuration will attend with there, which "auto" leaves open.

    It is asked about the first token beyond the window, without weights. Raises ValueError, with the reason, if the one
    asked for cannot run.
    """
    head_dim, parameters = head_dim_of(config), rope_parameters_of(config)
    share = parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None)) or 1.0
    theta = float(parameters["rope_theta"])
    rope = Rope(frequencies_of(theta, int(head_dim * share)), window, theta=theta)
    plan = make_plan(method, rope, Padding(None, window, 1), seed=0)
    return choose(attn_impl, torch.empty(1, 1, 1, head_dim, dtype=dtype, device=device), plan)


def commit_of(source: Source) -> str | None:
    """The commit of a model from the hub that is used here; None for a folder, and where the cache does not say."""
    if Path(source.folder).is_dir():
        return None
    return extract_commit_hash(_cached(source, CONFIG_NAME), None)


def _cached(source: Source, name: str) -> str | None:
    """Where a file of a model lies, fetched if it must be; None if there is none."""
    found: str | None = cached_file(
        source.folder,
        name,
        local_files_only=source.options.get("local_files_only", False),
        revision=source.options.get("revision"),
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found


def check_shards(source: Source) -> None:
    """Raise ValueError if the index of a model's shards names a file that is not safetensors: a pickle would be read.

    A model without such an index passes.
    """
    path = _cached(source, SAFE_WEIGHTS_INDEX_NAME)
    if path is None:
        return
    try:
        index = json.loads(Path(path).read_text(encoding="utf-8"))
        names = {str(name) for name in index["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"model: {path} is no index of weights (an object with 'weight_map')") from None
    foreign = sorted(name for name in names if not name.endswith(".safetensors"))
    if foreign:
        raise ValueError(
            f"model: {path} names {foreign[0]!r}, which is no safetensors file; pickled weights can run code of their "
            "own and are not read"
        )


def window_of(config: PreTrainedConfig) -> int:
    """W of a model's configuration, in tokens. Raises ValueError if it says none."""
    window = getattr(config, "max_position_embeddings", None)
    if window is None:
        raise ValueError(
            f"the configuration of model_type = {config.model_type!r} has no max_position_embeddings, the window; "
            "methods are for text models with rotary positions, give the text part's configuration"
        )
    return int(window)


def resolve(model_name: str, revision: str | None = None) -> Source:
    """A short name, a local folder, or a Hugging Face id. Where the hub is silent, the cache alone is asked.

    revision: commit, tag or branch of a model of the hub. Raises ValueError for another model with one.
    """
    folder = Path(model_name).expanduser()
    if revision is not None and (model_name in SHORT_NAMES or folder.is_dir()):
        raise ValueError(
            f"model_revision = {revision!r} is for models of the hub, and {model_name!r} is none; leave it out"
        )
    if model_name in SHORT_NAMES:
        return SHORT_NAMES[model_name]()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"model: the folder {model_name} holds no config.json")
        for path in sorted(folder.iterdir()):
            if path.exists() and not (path.is_file() or path.is_dir()):  # to read it would take for ever
                raise ValueError(f"model: {path} is a pipe or a device, no file; remove it")
        return Source(str(folder))
    if model_name.startswith((".", "/", "~")) or model_name.count("/") != 1:
        short = ", ".join(SHORT_NAMES)
        raise ValueError(
            f"model: {model_name!r} is neither a folder, nor a Hugging Face id (owner/name), nor a short name ({short})"
        )
    options: dict[str, Any] = {"local_files_only": True} if hub.silence() is not None else {}
    return Source(model_name, options if revision is None else {**options, "revision": revision})


def default_dtype(device: torch.device | str | None) -> torch.dtype:
    """What a model on that device has where nothing else is asked for. device: as `load` takes it."""
    return torch.bfloat16 if _named_device(device).type == "cuda" else torch.float32


def device_name(device: torch.device | str | None) -> str:
    """What people call the hardware, such as "NVIDIA H100 80GB HBM3" or "CPU". device: as `load` takes it."""
    found = _named_device(device)
    if found.type == "cuda" and (found.index or 0) < torch.cuda.device_count():
        return torch.cuda.get_device_name(found)
    return "CPU" if found.type == "cpu" else str(found)


def _named_device(device: torch.device | str | None) -> torch.device:
    """The device that is meant: the GPU if there is one and nothing is asked for."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device!r}; it must be cpu, cuda, cuda:0, ... or mps") from None


def _device(device: torch.device | str | None) -> torch.device:
    """The device that is meant, which must be there."""
    found = _named_device(device)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}, but this machine has {torch.cuda.device_count()} CUDA devices")
    return found


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return default_dtype(device)
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    return DTYPES[dtype]
