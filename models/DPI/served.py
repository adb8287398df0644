"""What a server says of itself with every answer, so that whoever asks it need not believe what it runs.

The plug-in of vLLM (`serving/vllm_gali`) writes it from the engine's own configuration, in the field that OpenAI's API
has for this (`system_fingerprint`); `pipeline/` compares it with the configuration of an experiment.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from models.DPI.methods.base import Method

MARK = "gali "
"""How the text begins; JSON follows."""


class Served(BaseModel):
    """A model with a method on it.

    params: all that the method has, also those that nobody gave. window: W in tokens. model: a Hugging Face id, or the
    whole path of a folder. revision: the commit of a model of the hub, where it is known. dtype: such as "bfloat16".
    quantization: vLLM's name of it. logprobs: vLLM's name of what it gives as such. version: of what serves.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    method: str
    params: dict[str, Any]
    window: int
    model: str
    revision: str | None
    dtype: str
    quantization: str | None
    logprobs: str
    version: str

    def text(self) -> str:
        """As it stands in an answer: the same text for the same content, ASCII."""
        return MARK + json.dumps(self.model_dump(), sort_keys=True)

    @classmethod
    def read(cls, text: object) -> Served | None:
        """What a text says; None for one that is not of this kind, such as a stock server's."""
        if not isinstance(text, str) or not text.startswith(MARK):
            return None
        try:
            return cls.model_validate_json(text.removeprefix(MARK))
        except ValidationError:
            return None


def params_of(method: Method) -> dict[str, Any]:
    """All parameters of a method, as JSON has them."""
    return method.model_dump(mode="json")
