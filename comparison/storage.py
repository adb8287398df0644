"""The folder of a comparison: what was asked for, the items, and a line for each setting and item.

request.json           the request, digests of the texts and of the model, refused settings, device and versions
items.json             the items without their tokens; items.safetensors: their tokens, one after another
scores.jsonl           a line for each setting and item, on disk before the next; other processes write
                       `scores-<rank>.jsonl`
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from comparison.probes import Item
from comparison.settings import Setting
from pipeline.files import read_json, write_json
from pipeline.store import MissingField, best_lines, differences, read_lines, replacing
from tasks.base import Line
from tasks.errors import UserError

REQUEST_FILE = "request.json"
ITEMS_FILE = "items.json"
TOKENS_FILE = "items.safetensors"
SETTINGS_FILE = "settings.json"
FOUND = ("commit", "weights", "device", "attention")
"""What the model and the machine are, which a comparison goes on with: other ones may give other numbers."""
_MOST_DIFFERENCES = 6


def scores_file(folder: Path, rank: int) -> Path:
    """Where a process writes its lines."""
    return folder / ("scores.jsonl" if rank == 0 else f"scores-{rank}.jsonl")


def read_scores(folder: Path) -> list[Line]:
    """The lines of all processes, one for each setting and item: its score if it has one, else its last error.

    Raises `UserError` for a line without them.
    """
    lines = [line for path in sorted(folder.glob("scores*.jsonl")) for line in read_lines(path)]
    with none_missing():
        for line in lines:
            line["id"] = f"{line['setting']} | {line['item']}"
    return best_lines(lines)


@contextlib.contextmanager
def none_missing() -> Iterator[None]:
    """A field that a line lacks as a `UserError`."""
    try:
        yield
    except MissingField as error:
        raise UserError(f"{error.place} has no {error}; compare.py did not write it") from None


def repair(folder: Path) -> None:
    """Take a last line off that was cut when a process was killed."""
    for path in folder.glob("scores*.jsonl"):
        read_lines(path, repair=True)


def check_same(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether the folder holds this comparison begun. Raises `UserError` if it holds another one."""
    path = folder / REQUEST_FILE
    if not path.exists():
        return False
    before = read_json(path)
    if not isinstance(before, dict):
        raise UserError(f"{str(path)!r} is no request of compare.py; choose another --out")
    kept = ["request", "texts", *(key for key in FOUND if key in before)]  # earlier versions wrote fewer
    found = list(differences({key: before.get(key) for key in kept}, {key: record[key] for key in kept}))
    if found:
        more = f" and {len(found) - _MOST_DIFFERENCES} more" if len(found) > _MOST_DIFFERENCES else ""
        raise UserError(
            f"{str(folder)!r} holds another comparison: {'; '.join(found[:_MOST_DIFFERENCES])}{more}; choose another"
            " --out, or remove the folder"
        )
    return True


def write_items(folder: Path, items: Sequence[Item]) -> None:
    """Keep the items with their tokens."""
    import torch
    from safetensors.torch import save

    tokens = torch.tensor([token for item in items for token in item.ids], dtype=torch.int32)
    with replacing(folder / TOKENS_FILE) as file:
        file.write(save({"tokens": tokens}))
    write_json(folder / ITEMS_FILE, [{**_without_ids(item), "tokens": len(item.ids)} for item in items])


def read_items(folder: Path, *, with_tokens: bool) -> list[Item]:
    """The items of a comparison; without their tokens `ids` is empty. Raises `UserError` for foreign files."""
    path = folder / ITEMS_FILE
    entries = read_json(path)
    try:
        sizes = [entry.pop("tokens") for entry in entries]
        items = [Item(**{**entry, "ids": (), "spans": tuple(map(tuple, entry["spans"]))}) for entry in entries]
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{str(path)!r} is no list of items of compare.py; remove it, and it is made anew") from None
    if not with_tokens:
        return items
    from safetensors.torch import load_file

    tokens = load_file(folder / TOKENS_FILE)["tokens"].tolist()
    if len(tokens) != sum(sizes):
        raise UserError(f"{str(folder / TOKENS_FILE)!r} does not belong to {ITEMS_FILE}; remove both")
    found, start = [], 0
    for item, size in zip(items, sizes, strict=True):
        found.append(replace(item, ids=tuple(tokens[start : start + size])))
        start += size
    return found


def write_settings(folder: Path, settings: Iterable[Setting]) -> None:
    """Keep the settings, in the order in which tables have them."""
    write_json(folder / SETTINGS_FILE, [asdict(setting) for setting in settings])


def read_settings(folder: Path) -> list[Setting]:
    """The settings of a comparison. Raises `UserError` for a foreign file."""
    path = folder / SETTINGS_FILE
    try:
        return [Setting(**entry) for entry in read_json(path)]
    except TypeError:
        raise UserError(f"{str(path)!r} is no list of settings of compare.py") from None


def _without_ids(item: Item) -> dict[str, Any]:
    return {key: value for key, value in vars(item).items() if key != "ids"}
