"""A model's rotary scheme: whether one set of frequencies serves a method, and that set."""

import copy
import functools
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from models.DPI.methods import Method, Rope
from models.DPI.patches.families import FULL, LOCAL, kinds_of_layers

# Schemes whose frequencies do not change with the input.
STATIC_ROPE_TYPES = ("default", "linear", "llama3", "yarn", "proportional")
# Schemes with one set of frequencies up to the length that the configuration has under this name.
STATIC_UP_TO = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}


def rope_parameters_of(config: PreTrainedConfig, kind: str = FULL) -> dict[str, Any]:
    """`rope_type`, `rope_theta` and what else the rotary scheme needs; of layers of a kind, where kinds differ."""
    parameters = _parameters(config, kind).copy()
    parameters.setdefault("rope_type", "default")
    parameters.setdefault("rope_theta", getattr(config, "rope_theta", 10_000.0))
    return parameters


def _parameters(config: PreTrainedConfig, kind: str) -> dict[str, Any]:
    """The configuration's own dictionary."""
    parameters = getattr(config, "rope_parameters", None) or {}
    found: dict[str, Any] = (parameters[kind] or {}) if kind in parameters else parameters
    return found


def has_rotary_by_kind(rotary: nn.Module) -> bool:
    """Whether a rotary module has frequencies for each kind of layer."""
    return hasattr(rotary, f"{FULL}_inv_freq")


def check_scheme(config: PreTrainedConfig, method: Method, window: int) -> None:
    """Raise ValueError if the model's rotary scheme has no one set of frequencies for a method and a window."""
    parameters = rope_parameters_of(config)
    rope_type = parameters["rope_type"]
    if rope_type not in (*STATIC_ROPE_TYPES, *STATIC_UP_TO):
        raise ValueError(
            f"the model's rotary scheme is rope_type = {rope_type!r}; supported are "
            f"{', '.join((*STATIC_ROPE_TYPES, *STATIC_UP_TO))}"
        )
    if rope_type in STATIC_UP_TO:
        name = STATIC_UP_TO[rope_type]
        bound = parameters.get(name) or getattr(config, name)
        if window > bound:
            raise ValueError(
                f"the model's rotary scheme is rope_type = {rope_type!r}, whose frequencies change beyond {name} = "
                f"{bound}, and the window is {window}; give a window (ori_max_position_embeddings) of at most {bound}"
            )
    if method.rope_types is not None and rope_type not in method.rope_types:
        raise ValueError(
            f"method {method.name!r} is not defined for the model's rotary scheme, rope_type = {rope_type!r}: "
            f"{method.rope_types_reason}; take a model with rope_type = {', '.join(method.rope_types)}, or one of the "
            "methods that change positions"
        )
    local = rope_parameters_of(config, LOCAL)["rope_type"]
    if LOCAL in kinds_of_layers(config) and local not in STATIC_ROPE_TYPES:
        raise ValueError(
            f"the layers that attend locally have rope_type = {local!r}, whose frequencies change with the input; "
            f"supported there are {', '.join(STATIC_ROPE_TYPES)}"
        )


def rope_of(config: PreTrainedConfig, rotary: nn.Module, window: int) -> Rope:
    """The rotary scheme of a model, computed anew in fp32 (a model cast to bf16 may hold rounded frequencies)."""
    fresh: Any = type(rotary)(config=config)
    parameters = rope_parameters_of(config)
    plain = parameters["rope_type"] == "default"
    return Rope(
        inv_freq=_inv_freq(fresh),
        window=window,
        theta=parameters["rope_theta"],
        scaling=float(getattr(fresh, f"{_prefix(fresh)}attention_scaling")),
        at_base=None if plain else functools.partial(_inv_freq_at, type(rotary), copy.deepcopy(config)),
    )


def _inv_freq_at(rotary_class: type[nn.Module], config: PreTrainedConfig, theta: float) -> torch.Tensor:
    """The scheme's frequencies at another base b, (rotary_dim/2,) fp32: its own formula, and all else of it stays.

    With f_i = b ** (-2i / d), the scheme's factor s and L its original_max_position_embeddings:
    linear: f_i / s. llama3: f_i / s for wavelengths 2 pi / f_i beyond L / low_freq_factor, f_i for those below
    L / high_freq_factor, between them (1 - t) f_i / s + t f_i with t = (L f_i / 2 pi - low) / (high - low). yarn:
    f_i / s * r_i + f_i (1 - r_i), the ramp r_i between the dimensions that make beta_fast and beta_slow turns within L
    at the new base. dynamic, within its length: f_i.
    """
    config = copy.deepcopy(config)
    _parameters(config, FULL)["rope_theta"] = theta
    return _inv_freq(rotary_class(config=config))


def _inv_freq(rotary: nn.Module) -> torch.Tensor:
    found: torch.Tensor = getattr(rotary, f"{_prefix(rotary)}inv_freq")
    return found.float().cpu()


def _prefix(rotary: nn.Module) -> str:
    return f"{FULL}_" if has_rotary_by_kind(rotary) else ""


def forget_lengths(rotary: nn.Module) -> None:
    """Let a dynamic scheme go back to the frequencies that it has up to its length, whatever was read before."""
    buffer = next(rotary.buffers())
    position = torch.zeros(1, 1, dtype=torch.int64, device=buffer.device)
    rotary(buffer, position, *((FULL,) if has_rotary_by_kind(rotary) else ()))
