"""The methods by the names that configurations use. A new method is one file and one line here."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from models.DPI.methods.base import MAX_TOKENS, Method, Rope
from models.DPI.methods.chunkllama import ChunkLlama
from models.DPI.methods.dpi import DPI
from models.DPI.methods.ntk import NTK, DynamicNTK
from models.DPI.methods.original import Original
from models.DPI.methods.selfextend import SelfExtend
from models.DPI.methods.yarn import YaRN
from models.mistakes import complaints, did_you_mean

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (DPI, SelfExtend, ChunkLlama, NTK, DynamicNTK, YaRN, Original)
}


def build_method(
    name: str, params: Mapping[str, Any] | None, window: int | None = None, target_length: int | None = None
) -> Method:
    """The method with validated parameters.

    window: W in tokens; target_length: the longest input meant, in tokens. What needs one that is None is not
    checked.
    Raises ValueError, one line that names the parameter, its value, the bound and what to do.
    """
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; it must be one of {', '.join(METHODS)}{did_you_mean(name, METHODS)}")
    try:
        method = METHODS[name](**dict(params or {}))
    except ValidationError as error:
        raise ValueError(f"params of method {name!r}: {_explain(error, METHODS[name])}") from None
    if window is None:
        return method
    check_window(method, window)
    if target_length is not None and method.reach(window) < target_length:
        raise ValueError(
            f"params of method {name!r}: {_set_parameters(method)} reaches {method.reach(window)} tokens from a window "
            f"of {window}, less than the target of {target_length}; {method.remedy(window, target_length)}"
        )
    return method


def check_window(method: Method, window: int) -> None:
    """Raise ValueError if a method's parameters make no sense for a window of W tokens."""
    if type(window) is not int or not 1 <= window <= MAX_TOKENS:
        raise ValueError(
            f"max_position_embeddings = {window!r} must be at least 1, a whole number of tokens up to {MAX_TOKENS}"
        )
    try:
        method.check_window(window)
    except ValueError as error:
        raise ValueError(f"params of method {method.name!r}: {error}") from None


def _explain(error: ValidationError, method: type[Method]) -> str:
    """One line for all of pydantic's complaints."""
    said = "; ".join(complaints(error, method.model_fields, noun="parameter"))
    unknown = any(item["type"] == "extra_forbidden" for item in error.errors())
    return f"{said} (known: {', '.join(method.model_fields) or 'none'})" if unknown else said


def _set_parameters(method: Method) -> str:
    return ", ".join(f"{key} = {value}" for key, value in method.model_dump().items())


__all__ = ["METHODS", "Method", "Rope", "build_method", "check_window"]
