"""GALI: longer inputs for Llama-type models, without training.

    from gali import build_method, get_model_and_tokenizer, install, installed, progress, uninstall

    model, tokenizer = get_model_and_tokenizer("tiny", None, "dpi", {"chunk_coe": 1, "local_window": 256})

What `models.DPI` has, under the name of the installed package. Nothing is imported before it is asked for.
"""

from typing import TYPE_CHECKING, Any

from models import DPI

if TYPE_CHECKING:
    from models.DPI.dpi import get_model_and_tokenizer
    from models.DPI.methods import METHODS, build_method
    from models.DPI.patches.Llama import install, installed, uninstall
    from models.DPI.patches.progress import progress

__all__ = ["METHODS", "build_method", "get_model_and_tokenizer", "install", "installed", "progress", "uninstall"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(DPI, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
