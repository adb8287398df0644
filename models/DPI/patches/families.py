"""Which architectures methods can be installed on, and how each differs from Llama.

An architecture serves if every layer hands queries and keys to transformers' attention interface right after the
rotation, if the rotation is one of pairs of components, and if nothing but a soft cap and a softmax, with or without
sinks, stands between logits and weights. All in `FAMILIES` are tested against their stock models; `REFUSED` says why
others cannot work.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

FULL, LOCAL = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Family:
    """An architecture's peculiarities.

    interleaved: components 2m and 2m + 1 rotate together, instead of m and m + D/2.
    rotates_if: name of what is true on the attention modules that rotate; the others have no positions to change.
    hands_on: whether a decoder layer hands arguments that it does not know to its attention.
    half_tables: cosines and sines are those of the angles, D/2, and not each twice.
    plain_softmax: logits have no soft cap and the softmax no sinks. Where they do, the stock model can but form all
        logits, so layers that attend locally go over bands beyond the window, like the others.
    """

    interleaved: bool = False
    rotates_if: str | None = None
    hands_on: bool = True
    half_tables: bool = False
    plain_softmax: bool = True

    def rotates(self, attention: nn.Module) -> bool:
        """Whether a layer's attention rotates queries and keys."""
        return self.rotates_if is None or bool(getattr(attention, self.rotates_if))


_HALVES = Family()
_INTERLEAVED = Family(interleaved=True)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        (
            "llama", "mistral", "qwen2", "qwen3",
            "arcee", "exaone4", "gemma", "gemma3_text", "gpt_neox", "granite", "granitemoe", "ministral", "mixtral",
            "olmo", "olmo2", "olmo3", "olmoe", "phi", "phi3", "qwen2_moe", "qwen3_moe", "seed_oss",
            "starcoder2",
        ),
        _HALVES,
    ),
    **dict.fromkeys(("cohere", "ernie4_5", "glm", "glm4", "helium"), _INTERLEAVED),
    **dict.fromkeys(("nemotron", "stablelm"), Family(hands_on=False)),
    **dict.fromkeys(("gemma2", "vaultgemma"), Family(plain_softmax=False)),
    "gpt_oss": Family(half_tables=True, plain_softmax=False),
    "smollm3": Family(rotates_if="use_rope"),
}  # fmt: skip

REFUSED: dict[str, str] = {
    "cohere2": "its layers that attend to everything have no rotary positions, and the others attend locally",
    "deepseek_v2": "its latent attention rotates a part of the key that all heads share",
    "deepseek_v3": "its latent attention rotates a part of the key that all heads share",
    "hunyuan_v1_dense": "it normalises queries and keys behind the rotation",
    "llama4_text": "its layers that attend to everything have no rotary positions, and the others attend locally",
}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a model's configuration. Raises ValueError, with the reason where it is known."""
    found = FAMILIES.get(config.model_type)
    if config.model_type == "exaone4" and getattr(config, "sliding_window", None) is not None:
        raise ValueError(
            f"model_type is 'exaone4' with sliding_window = {config.sliding_window}: its layers that attend to "
            "everything have no rotary positions then, and the others attend locally"
        )
    if found is None:
        why = REFUSED.get(config.model_type)
        raise ValueError(
            f"model_type is {config.model_type!r}{f' ({why})' if why else ''}; "
            f"methods can be installed on {', '.join(FAMILIES)}"
        )
    return found


def kinds_of_layers(config: PreTrainedConfig) -> list[str]:
    """What each layer attends to: `FULL`, `LOCAL` (the last tokens), or another of transformers' kinds."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return list(kinds)
    sliding = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return [LOCAL if sliding else FULL] * int(config.num_hidden_layers)


def has_one_plan(family: Family, kinds: Sequence[str]) -> bool:
    """Whether all layers of a model attend by one plan. kinds: of its layers."""
    return family.rotates_if is None and LOCAL not in kinds


def head_dim_of(config: PreTrainedConfig) -> int:
    """Components of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def kv_heads_of(config: PreTrainedConfig) -> int:
    """Key heads of a layer."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """What a model makes of its last hidden states, (..., hidden) -> (..., vocabulary) fp32, on the head's device."""
    head, config = model.get_output_embeddings(), getattr(model, "config", None)
    logits: Tensor = head(hidden.to(head.weight.device)).float()
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / divisor
    if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
        logits = cap * (logits / cap).tanh()
    return logits


def stock_attention_of(config: PreTrainedConfig, wanted: str) -> str:
    """transformers' name of what can attend in the stock model: `wanted`, or "eager" where that has no cap or sinks."""
    return wanted if family_of(config).plain_softmax else "eager"


def calls_interface(base: nn.Module) -> bool:
    """Whether a base model's attention goes through transformers' attention interface; not all did in old versions."""
    return hasattr(sys.modules[type(base).__module__], "ALL_ATTENTION_FUNCTIONS")


def eager_attention_of(attention: nn.Module) -> Callable[..., Any]:
    """The family's own attention by the definition."""
    found: Callable[..., Any] = sys.modules[type(attention).__module__].eager_attention_forward
    return found


def rotate_as_stock(attention: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, half_tables: bool = False) -> Tensor:
    """The model's own rotation, in its own arithmetic. x: (B, H, N, D); cos, sin: (B or 1, N, width of its tables)."""
    apply = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    rotary_dim = 2 * cos.shape[-1] if half_tables else cos.shape[-1]
    rotated: Tensor = apply(x[..., :rotary_dim], x[:, :0, :, :rotary_dim], cos, sin)[0]
    return rotated if x.shape[-1] == rotary_dim else torch.cat((rotated, x[..., rotary_dim:]), dim=-1)


def in_halves(x: Tensor, rotary_dim: int) -> Tensor:
    """Interleaved pairs of components side by side as halves: logits stay as they are. x: (B, H, N, D)."""
    return torch.cat((x[..., :rotary_dim:2], x[..., 1:rotary_dim:2], x[..., rotary_dim:]), dim=-1)
