"""A server with GALI says what it runs with every answer, in the field `system_fingerprint` of OpenAI's API.

Clients cannot see which method a server runs, and a stock one answers to the same requests. What is said comes from the
engine's configuration, whatever the server was told about fingerprints.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vllm
from huggingface_hub import try_to_load_from_cache
from vllm.config import VllmConfig
from vllm.entrypoints.serve.utils import fingerprint

from vllm_gali.settings import KEY, engine_of, settings_of

if TYPE_CHECKING:
    from vllm_gali.gali import Served


def register() -> None:
    """Wrap `get_system_fingerprint`, once. vLLM looks it up in its module where it needs it."""
    stock = fingerprint.get_system_fingerprint
    if hasattr(stock, "gali"):
        return

    @functools.wraps(stock)
    def get_system_fingerprint(vllm_config: VllmConfig) -> str | None:
        if settings_of(vllm_config) is None:
            said: str | None = stock(vllm_config)
            return said
        return served_of(vllm_config).text()

    get_system_fingerprint.gali = True  # type: ignore[attr-defined]
    fingerprint.get_system_fingerprint = get_system_fingerprint


def served_of(config: VllmConfig) -> "Served":
    """What an engine with GALI runs. Raises ValueError for one that the plug-in has not prepared."""
    from vllm_gali.gali import Served, params_of

    model: Any = config.model_config
    if KEY not in model.hf_text_config.rope_parameters:
        raise ValueError("gali: the engine's configuration was not made by this plug-in")
    engine = engine_of(config)
    is_folder = Path(model.model).is_dir()
    return Served(
        method=engine.method.name,
        params=params_of(engine.method),
        window=engine.rope.window,
        model=str(Path(model.model).resolve()) if is_folder else model.model,
        revision=None if is_folder else _commit_of(model.model, model.revision),
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=model.quantization,
        logprobs=str(model.logprobs_mode),
        version=f"vLLM {vllm.__version__}",
    )


def _commit_of(model: str, revision: str | None) -> str | None:
    """The commit of a model of the hub, from its place in the cache; None where it lies elsewhere."""
    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None
