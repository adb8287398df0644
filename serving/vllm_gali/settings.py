"""What `additional_config = {"gali": {...}}` says, and what an engine makes of it."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from vllm.config import VllmConfig, get_current_vllm_config_or_none

if TYPE_CHECKING:
    from vllm_gali.gali import Method, Rope

KEY = "gali"
"""Of `additional_config`, and of the mark in the model's rope_parameters."""


class Settings(BaseModel):
    """The table `gali`.

    method: a name of GALI's methods. params: its parameters. window: W in tokens, the length that the model was trained
    on; None: the configuration's max_position_embeddings.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    method: str
    params: dict[str, Any] = Field(default_factory=dict)
    window: int | None = None

    def mark(self) -> str:
        """The same text for the same settings."""
        return json.dumps(self.model_dump(), sort_keys=True)


@dataclass(frozen=True, eq=False)
class Engine:
    """What an engine's attention needs to know: the method, and the model's rotary scheme with its window."""

    method: "Method"
    rope: "Rope"


def read_settings(additional_config: Any) -> Settings | None:
    """The settings in an `additional_config`, or None. Raises ValueError, one line, for what they cannot be."""
    if not isinstance(additional_config, Mapping):
        return None
    for key in additional_config:  # a misspelt one would leave the engine stock
        if key != KEY and difflib.get_close_matches(str(key).lower(), [KEY], cutoff=0.75):
            raise ValueError(f"additional_config: unknown key {key!r}; did you mean {KEY!r}?")
    if KEY not in additional_config:
        return None
    table = additional_config[KEY]
    if not isinstance(table, Mapping):
        raise ValueError(f"additional_config: {KEY} = {table!r} must be a table with method, params and window")
    try:
        return Settings(**table)
    except ValidationError as error:
        from vllm_gali.gali import complaints

        said = "; ".join(complaints(error, Settings.model_fields))
        raise ValueError(f"additional_config: {KEY}: {said} (known: {', '.join(Settings.model_fields)})") from None
    except TypeError:
        raise ValueError(f"additional_config: {KEY}: keys must be texts, and are {list(table)!r}") from None


def settings_of(config: VllmConfig | None) -> Settings | None:
    """An engine's settings, None for a stock one."""
    return None if config is None else read_settings(config.additional_config)


def current_settings() -> Settings | None:
    """Those of the engine whose model is being built."""
    return settings_of(get_current_vllm_config_or_none())


def engine_of(config: VllmConfig) -> Engine:
    """The method and rotary scheme of an engine with settings; checked before, see `checks`."""
    settings = settings_of(config)
    if settings is None:
        raise ValueError(f"the engine's additional_config has no {KEY}")
    text = config.model_config.hf_text_config
    window = text.max_position_embeddings if settings.window is None else settings.window
    head_dim = config.model_config.get_head_size()
    return _engine(settings.mark(), window, head_dim, float(text.rope_parameters["rope_theta"]))


@lru_cache(maxsize=8)
def _engine(mark: str, window: int, head_dim: int, theta: float) -> Engine:
    """One for all layers of an engine, so that they share their tables."""
    from vllm_gali.gali import Rope, build_method, frequencies_of

    settings = Settings.model_validate_json(mark)
    method = build_method(settings.method, settings.params, window)
    return Engine(method, Rope(frequencies_of(theta, head_dim), window, theta))
