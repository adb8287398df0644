"""Words for a user's mistakes, the same wherever one is found: the nearest known word, and what a value must be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

_MOST_OF_A_VALUE = 120

_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table",
    "mapping_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_BOUNDS = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "string_too_short": "a text of at least {min_length} characters",
    "too_short": "a list of at least {min_length} entries",
}
# How pydantic calls a member of a union at the end of a place: "int", "dict[str,int]". It is no key of ours.
_MEMBER = re.compile(r"int|float|str|bool|none|[\w-]+\[.*\]")


def did_you_mean(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """The nearest of the known words as the end of a complaint; empty where none is near.

    likeness: of 1, that it has at least.
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)
    return f"; did you mean {near[0]!r}?" if near else ""


def requirement(item: Mapping[str, Any]) -> str:
    """What a value must be, in words, such as "must be a whole number". item: one of pydantic's errors."""
    kind, context = item["type"], item.get("ctx", {})
    if kind in ("string_too_short", "too_short") and context.get("min_length") == 1:
        return "must not be empty"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}"
    if kind in _BOUNDS:
        return f"must be {_BOUNDS[kind].format_map({key: _number(value) for key, value in context.items()})}"
    said = str(item["msg"])
    return said[:1].lower() + said[1:]


def complaints(error: ValidationError, known: Iterable[str] = (), *, noun: str = "key") -> list[str]:
    """All of pydantic's errors, each a piece of a line that names what is wrong, its value and what it must be.

    known: the names that there are. noun: what a name is, such as "key" or "parameter".
    """
    known = list(known)
    said: list[str] = []
    wanted: dict[tuple[str, str], list[str]] = {}  # by name and value: a union has one error for each of its members
    for item in error.errors():
        name = _name(item["loc"])
        if item["type"] == "extra_forbidden":
            said.append(f"unknown {noun} {name!r}{did_you_mean(name, known)}")
        elif item["type"] == "missing" and isinstance(item["loc"][-1], int):  # of a list of a fixed length
            said.append(f"{_name(item['loc'][:-1])} = {list(item['input'])!r}: has too few entries")
        elif item["type"] == "missing":
            said.append(f"the {noun} {name!r} is missing")
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
            said.append(message if not name or name in message else f"{name}: {message}")
        else:
            value = repr(item["input"])
            value = value if len(value) <= _MOST_OF_A_VALUE else f"{value[:_MOST_OF_A_VALUE]}..."
            must = wanted.setdefault((name, value), [])
            if not must:
                said.append("")  # its place in the order; filled in below
            must.append(requirement(item))
    lines = iter(f"{name} = {value}: {_either(must)}" for (name, value), must in wanted.items())
    return [text or next(lines) for text in said]


def _name(place: tuple[int | str, ...]) -> str:
    parts = [str(part) for part in place]
    while parts and _MEMBER.fullmatch(parts[-1]):
        parts.pop()
    return ".".join(parts)


def _either(requirements: list[str]) -> str:
    """Requirements of which one is enough. A whole number is a number."""
    kept = dict.fromkeys(requirements)
    if "must be a number" in kept:
        kept.pop("must be a whole number", None)
    first, *others = kept
    return " or ".join([first, *(other.removeprefix("must be ") for other in others)])


def _number(value: Any) -> Any:
    """Whole numbers without a decimal point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
