"""What `get_model_and_tokenizer` may get as its `config`: a model's configuration, or an experiment's table."""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from models.mistakes import did_you_mean

Config = TypeVar("Config")

NEAR = 0.8
"""Likeness, of 1, of a misspelt key: `max_pee` and `max_position_embeddings` are nearer, `max_k` is not."""
WINDOW_KEY, TARGET_KEY = "ori_max_position_embeddings", "max_pe"


def split_config(
    config: Config | Mapping[str, Any] | None, window: int | Literal["auto"] | None, target_length: int | None
) -> tuple[Config | None, int | Literal["auto"] | None, int | None]:
    """The model's configuration, window and target length, in tokens; the window may be "auto".

    config: an experiment's table, as `pred.py` reads it from TOML, gives window and target where those are None. Its
    other keys are not refused, unless they are nearly one of the two: the model, method and parameters are arguments
    of their own, and what belongs to a benchmark does not concern a model. A configuration of transformers, or None,
    passes as it is.
    Raises ValueError for a window or target that is no positive integer, for a key that is nearly one of theirs and for
    a model's configuration as a mapping, TypeError for anything else.
    """
    if not isinstance(config, Mapping):
        if config is None or hasattr(config, "model_type"):
            return config, window, target_length
        raise TypeError(
            f"config is a {type(config).__name__}; give transformers' configuration, an experiment's table (a mapping "
            f"with {WINDOW_KEY} and {TARGET_KEY}), or None for the model's own"
        )
    if "model_type" in config:
        raise ValueError(
            f"config is a mapping with model_type = {config['model_type']!r}, a model's configuration; give it as "
            "transformers' object, AutoConfig.for_model(**config)"
        )
    for key in map(str, set(config) - {WINDOW_KEY, TARGET_KEY}):
        if near := did_you_mean(key, (WINDOW_KEY, TARGET_KEY), NEAR):
            raise ValueError(f"config: unknown key {key!r}{near}")
    if window is None:
        window = "auto" if config.get(WINDOW_KEY) == "auto" else _tokens(config, WINDOW_KEY)
    if target_length is None:
        target_length = _tokens(config, TARGET_KEY)
    return None, window, target_length


def _tokens(config: Mapping[str, Any], key: str) -> int | None:
    """A key's number of tokens; None where the key is absent."""
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config: {key} is {value!r}; it must be a positive integer, in tokens")
    return value
