"""The methods by the names that configurations use. A new method is one file and one line here."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from models.DPI.methods.base import MAX_TOKENS, Method, Rope
from models.DPI.methods.chunkllama import ChunkLlama
from models.DPI.methods.dpe import DPE
from models.DPI.methods.dpi import DPI
from models.DPI.methods.lampe import LaMPE
from models.DPI.methods.leaky_rerope import LeakyReRoPE
from models.DPI.methods.mrrope import MrRoPE
from models.DPI.methods.multi_scale import MultiScale
from models.DPI.methods.ntk import NTK, DynamicNTK
from models.DPI.methods.original import Original
from models.DPI.methods.pi import PI
from models.DPI.methods.rerope import ReRoPE
from models.DPI.methods.selfextend import SelfExtend
from models.DPI.methods.streaming_llm import StreamingLLM
from models.DPI.methods.string import STRING
from models.DPI.methods.tailspline import TailSpline
from models.DPI.methods.yarn import YaRN
from models.mistakes import complaints, did_you_mean

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        DPI,
        SelfExtend,
        ChunkLlama,
        NTK,
        DynamicNTK,
        YaRN,
        Original,
        PI,
        ReRoPE,
        LeakyReRoPE,
        STRING,
        DPE,
        StreamingLLM,
        LaMPE,
        MrRoPE,
        TailSpline,
        MultiScale,
    )
}


def methods_of_the_paper() -> dict[str, type[Method]]:
    """Those of GALI's paper: what runs where no methods are named, so that a demo and a sweep take what they took."""
    return {name: method for name, method in METHODS.items() if method.in_paper}


AUTO = "auto"
"""In place of a parameter's value, or of W: what `Method.automatic` and the model's calibration say."""


def has_auto(params: Mapping[str, Any] | None) -> bool:
    """Whether a parameter is "auto"."""
    return any(_is_auto(value) for value in (params or {}).values())


def _is_auto(value: object) -> bool:
    return isinstance(value, str) and value == AUTO


def resolve_params(name: str, params: Mapping[str, Any] | None, window: int) -> dict[str, Any]:
    """Parameters with numbers where they are "auto", for a window of W tokens. Raises ValueError, one line."""
    _check_name(name)
    automatic = METHODS[name].automatic(window)
    found = dict(params or {})
    for parameter, value in found.items():
        if _is_auto(value):
            if parameter not in automatic:
                can = f"only {' and '.join(automatic)} can be 'auto'" if automatic else "it has nothing that can be"
                raise ValueError(f"params of method {name!r}: {parameter} = 'auto': {can}; give a value")
            found[parameter] = automatic[parameter]
    return found


def check_auto_window(name: str) -> None:
    """Raise ValueError if a method's window cannot be "auto"."""
    _check_name(name)
    if not METHODS[name].automatic(MAX_TOKENS):
        able = ", ".join(other for other, method in METHODS.items() if method.automatic(MAX_TOKENS))
        raise ValueError(
            f"window = 'auto': the method {name!r} takes the model's whole window; leave the window out, give "
            f"it in tokens, or take the method {able}"
        )


def _check_name(name: str) -> None:
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; it must be one of {', '.join(METHODS)}{did_you_mean(name, METHODS)}")


def build_method(
    name: str, params: Mapping[str, Any] | None, window: int | None = None, target_length: int | None = None
) -> Method:
    """The method with validated parameters.

    window: W in tokens; target_length: the longest input meant, in tokens. What needs one that is None is not
    checked. Parameters that are "auto" need the window.
    Raises ValueError, one line that names the parameter, its value, the bound and what to do.
    """
    _check_name(name)
    if has_auto(params):
        if window is None:
            resolve_params(name, params, MAX_TOKENS)
            raise ValueError(f"params of method {name!r}: 'auto' depends on the window; give the window too")
        check_window_size(window)
        params = resolve_params(name, params, window)
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
    check_window_size(window)
    try:
        method.check_window(window)
    except ValueError as error:
        raise ValueError(f"params of method {method.name!r}: {error}") from None


def check_window_size(window: int) -> None:
    """Raise ValueError if W is no number of tokens."""
    if type(window) is not int or not 1 <= window <= MAX_TOKENS:
        raise ValueError(
            f"max_position_embeddings = {window!r} must be at least 1, a whole number of tokens up to {MAX_TOKENS}"
        )


def _explain(error: ValidationError, method: type[Method]) -> str:
    """One line for all of pydantic's complaints."""
    said = "; ".join(complaints(error, method.model_fields, noun="parameter"))
    unknown = any(item["type"] == "extra_forbidden" for item in error.errors())
    return f"{said} (known: {', '.join(method.model_fields) or 'none'})" if unknown else said


def _set_parameters(method: Method) -> str:
    return ", ".join(f"{key} = {value}" for key, value in method.model_dump(exclude={"temperature"}).items())


__all__ = [
    "AUTO",
    "METHODS",
    "Method",
    "Rope",
    "build_method",
    "check_auto_window",
    "check_window",
    "has_auto",
    "methods_of_the_paper",
    "resolve_params",
]
