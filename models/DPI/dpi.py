"""GALI and the methods it is compared with, in O(n) memory: no matrix of queries x keys is ever held whole."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from models.DPI.config_mapping import split_config
from models.DPI.loading import load
from models.DPI.methods import build_method


def get_model_and_tokenizer(
    model_name: str,
    config: PreTrainedConfig | Mapping[str, Any] | None,
    method: str,
    params: Mapping[str, Any] | None,
    max_position_embeddings: int | Literal["auto"] | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    target_length: int | None = None,
    attn_impl: str = "auto",
    seed: int = 0,
    device_map: str | dict[str, Any] | None = None,
    tp_plan: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and let it attend as a method says.

    model_name: a Hugging Face id, a local folder, or a short name (`smollm2-135m`, `tiny`).
    config: the model's configuration; None reads it from the model. An experiment's table (a mapping, as read from
        TOML) gives `ori_max_position_embeddings` and `max_pe` where the arguments for them are None.
    method, params: a name of `models.DPI.methods.METHODS` and its parameters.
    max_position_embeddings: W, the window in tokens; None takes the configuration's. "auto", under a method that can:
        the model's effective window, which is measured (`models.DPI.calibration`) and kept in the user's cache folder.
        Parameters may be "auto" likewise: GALI's local_window and chunk_coe.
    dtype: bf16 on a GPU and fp32 on a CPU unless given.
    target_length: the longest input meant, in tokens; a method that cannot reach it is refused.
    attn_impl: how attention is computed beyond the window, see `models.DPI.attention.api`.
    seed: of the noise. device_map, tp_plan: as in transformers, for models that need several cards.
    trust_remote_code: whether Python files that come with a model may run.
    revision: commit, tag or branch of a model of the hub; None takes the newest.

    Raises ValueError, before any weight is loaded, if a parameter is unknown, missing or out of its bounds, or the
    model is not supported; TypeError if `config` is something else.
    """
    model_config, window, target = split_config(config, max_position_embeddings, target_length)
    return load(
        model_name,
        model_config,
        method,
        params,
        window,
        dtype=dtype,
        device=device,
        target_length=target,
        attn_impl=attn_impl,
        stock_attention="sdpa",
        seed=seed,
        revision=revision,
        device_map=device_map,
        tp_plan=tp_plan,
        trust_remote_code=trust_remote_code,
    )


def validate_method(
    method: str, params: Mapping[str, Any] | None, window: int | None = None, target_length: int | None = None
) -> None:
    """Check a method and its parameters as `get_model_and_tokenizer` would. Raises ValueError."""
    build_method(method, params, window, target_length)
