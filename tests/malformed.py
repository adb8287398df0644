"""Files of every kind that the scripts read, made wrong in every way, for `test_fuzz_scripts.py`."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Json = Any

WRONG: tuple[Json, ...] = (
    None, True, False, -1, 0, 1, 3, 1.5, -0.0, 1e308, 2**31, 2**63, -(2**63) - 1, "", "x", "1", "\ud800", "a\0b",
    "\x1b[2J", "=1+1", "../x", [], [None], [[]], ["x"], [1], {}, {"x": None}, {"id": 1}, {"records": True},
)  # fmt: skip
"""Values that take the place of others."""
RAW = {
    "empty": b"",
    "NUL": b"\0" * 40,
    "no UTF-8": b"\xff\xfe{}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "digits": b'{"config": ' + b"9" * 5000 + b"}",
    "digits in TOML": b"max_pe = 0x" + b"f" * 5000,
    "deep": b"[" * 30_000,
    "deep objects": b'{"a":' * 30_000,
    "deep key": b"a" + b".a" * 20_000 + b" = 1",
    "long line": b'{"x": "' + b"y" * 2_000_000 + b'"}',
    "NaN": b'{"id": "a", "pred": NaN, "score": 1e999}',
    "scalar": b"3",
    "text": b'"x"',
    "null": b"null",
    "list": b"[1, 2]",
    "many empty lines": b"\n" * 50_000,
    "pickle": b"\x80\x04K\x01.",
}
"""Whole contents that take the place of others."""


@dataclass(frozen=True)
class Change:
    """How a file is made wrong. kind: a key of `RAW`, "cut", "flip", "set", "drop" or "twice"; place and value: of it.

    place: for "cut" and "flip" a share of the bytes, else which of all places in the JSON document.
    """

    kind: str
    place: float = 0.0
    value: Json = None

    def apply(self, content: bytes, *, lines: bool) -> bytes:
        """The file's content, made wrong. lines: whether it has a JSON document on each line."""
        if self.kind in RAW:
            return RAW[self.kind]
        at = int(self.place * len(content))
        if self.kind == "cut":
            return content[:at]
        if self.kind == "flip":
            return content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :] if content else b"\0"
        try:
            documents = [json.loads(line) for line in content.splitlines()] if lines else [json.loads(content)]
        except ValueError:  # TOML, safetensors
            return self._apply_to_text(content)
        places = [place for document in documents for place in _places(document)]
        parent, key = places[int(self.place * len(places))]
        if self.kind == "drop":
            del parent[key]
        elif self.kind == "twice":
            documents.append(documents[0])
        else:
            parent[key] = self.value
        return b"".join(json.dumps(item).encode() + b"\n" for item in documents)

    def _apply_to_text(self, content: bytes) -> bytes:
        """The same for a file of `key = value` lines; others get some bytes."""
        rows = content.decode("latin-1").split("\n")
        at = int(self.place * len(rows))
        key = rows[at].split("=")[0].strip()
        if self.kind == "drop":
            del rows[at]
        elif self.kind == "twice":
            rows.append(rows[at])
        else:
            rows[at] = f"{key} = {_toml(self.value)}"
        return "\n".join(rows).encode("latin-1", "replace")


def _places(document: Json) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in list(keys)[:40]:
        found += [(document, key), *_places(document[key])]
    return found


def _toml(value: Json) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return "1979-05-27" if value is None else json.dumps(value)


SHARES = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
CHANGES = st.one_of(
    st.sampled_from([Change(kind) for kind in RAW]),
    st.builds(Change, st.sampled_from(["cut", "flip", "drop", "twice"]), SHARES),
    st.builds(Change, st.just("set"), SHARES, st.sampled_from(WRONG)),
    st.builds(Change, st.just("set"), SHARES, st.sampled_from(WRONG)),
)


def shard_index(name: str) -> bytes:
    """An index of shards that names that file for every weight."""
    return json.dumps({"metadata": {}, "weight_map": {"model.embed_tokens.weight": name}}).encode()


def safetensors_header(header: Mapping[str, Json], size: int | None = None) -> bytes:
    """A safetensors file of that header, whose length is said to be `size`, and a few weights."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + b"\0" * 16


def write(path: Path, content: bytes) -> None:
    """Write a file, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
