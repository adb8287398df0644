"""Measurements of models in the user's cache folder: JSON, written whole or not at all, and checked where it is read.

A measurement lies under a hash of all that it depends on: the model's configuration, its weights, and what it was fed.
Of every weight the hash holds name, type, shape, some elements, and the exact sum of its bytes; so it sees any change
but one that moves bytes within a tensor past the elements that are looked at.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from models.DPI.short_names import cache_folder
from models.mistakes import complaints

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Content = TypeVar("Content", bound=BaseModel)


class _Kept(BaseModel):
    """A file. key: what it is of, so that a renamed file serves nobody."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str
    content: dict[str, Any]


_SAMPLE = 256
_MOST_BYTES = 1 << 22
# What a configuration says of where the model came from, not of what it computes.
_PASSING = {"_name_or_path", "transformers_version", "architectures", "use_cache"}


def key_of(model: PreTrainedModel, fed: Any) -> str | None:
    """The hash of a model and of what it is fed (any JSON); None where its weights are not at hand.

    They are not where they are offloaded to disk, or spread over processes, nor where adapters can be switched.
    """
    if hasattr(model, "peft_config"):
        return None
    digest = hashlib.sha256()
    config = {name: value for name, value in model.config.to_dict().items() if name not in _PASSING}
    digest.update(json.dumps([config, fed], sort_keys=True, default=str).encode())
    for name, weight in model.state_dict(keep_vars=True).items():
        tensor = getattr(weight, "data", weight)
        if type(tensor) is not Tensor or tensor.is_meta:
            return None
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_sampled(tensor))
    return digest.hexdigest()


def _sampled(tensor: Tensor) -> bytes:
    """Some elements at even distances and the sum of all bytes, whatever the device."""
    data = tensor.detach().contiguous().view(-1)
    if not data.numel():
        return b""
    some = data[:: max(1, data.numel() // _SAMPLE)].contiguous().view(torch.uint8).cpu()
    total = int(data.view(torch.uint8).sum(dtype=torch.int64))
    return bytes(some.tolist()) + total.to_bytes(8, "little")


def path_of(key: str) -> Path:
    """Where a measurement lies."""
    return cache_folder() / "calibration" / f"{key}.json"


def read(key: str, kind: type[Content]) -> Content | None:
    """What is kept under a key; None where there is nothing, or nothing that can be used, which is said."""
    path = path_of(key)
    try:
        if not path.exists():
            return None
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"no regular file of at most {_MOST_BYTES} bytes")
        kept = _Kept.model_validate_json(path.read_bytes())
        if kept.key != key:
            raise ValueError("it is of another model or another input")
        return kind.model_validate_json(json.dumps(kept.content))
    except ValidationError as error:
        said = complaints(error)[0]
    except (OSError, ValueError) as error:
        said = str(error)
    logger.warning("%s cannot be used (%s); the model is measured anew", path, said[:200])
    return None


def write(key: str, content: BaseModel) -> None:
    """Keep a measurement. Where that cannot be, it is said, and nothing else happens."""
    path = path_of(key)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(_Kept(key=key, content=content.model_dump(mode="json")).model_dump_json(indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        logger.warning("the measurement cannot be kept in %s: %s", path.parent, error)
        if temporary is not None:
            temporary.unlink(missing_ok=True)
