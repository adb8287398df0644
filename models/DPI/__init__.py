"""DPI: dynamic positions with interpolated logits, the paper's GALI, and the methods it is compared with.

    from models.DPI import METHODS, build_method, get_model_and_tokenizer, install, installed, progress, uninstall

    model, tokenizer = get_model_and_tokenizer("tiny", None, "dpi", {"chunk_coe": 1, "local_window": 256})
    with installed(model, build_method("repro_yarn", {"factor": 4.0})):
        ...

`get_model_and_tokenizer` loads a model with a method on it. `install` puts a method on a model of transformers that is
loaded already, `uninstall` takes it off, `installed` does both around a block. `progress` shows how far a model is with
a long prompt. `METHODS` are the methods by name, `build_method` makes one with validated parameters. Nothing is
imported before it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.DPI.dpi import get_model_and_tokenizer
    from models.DPI.methods import METHODS, build_method
    from models.DPI.patches.Llama import install, installed, uninstall
    from models.DPI.patches.progress import progress

__all__ = ["METHODS", "build_method", "get_model_and_tokenizer", "install", "installed", "progress", "uninstall"]

_HOMES = {
    "METHODS": "models.DPI.methods",
    "build_method": "models.DPI.methods",
    "get_model_and_tokenizer": "models.DPI.dpi",
    "install": "models.DPI.patches.Llama",
    "installed": "models.DPI.patches.Llama",
    "progress": "models.DPI.patches.progress",
    "uninstall": "models.DPI.patches.Llama",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
