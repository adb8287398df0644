"""The same models with attention materialised: O(n^2) memory, and `output_attentions=True` is honoured."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from models.DPI.config_mapping import split_config
from models.DPI.loading import load


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
    seed: int = 0,
    device_map: str | dict[str, Any] | None = None,
    tp_plan: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As `models.DPI.dpi.get_model_and_tokenizer`, with every attention matrix formed.

    Call the model with `output_attentions=True` for the probabilities of each layer, (B, H, T, N).
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
        attn_impl="reference",
        stock_attention="eager",
        seed=seed,
        revision=revision,
        device_map=device_map,
        tp_plan=tp_plan,
        trust_remote_code=trust_remote_code,
    )
