"""Benchmark records from jsonl files: a local folder's, or those of a data set repository on the hub."""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from models import hub
from models.mistakes import requirement
from tasks.errors import AbsentDataError, UserError
from tasks.options import Options
from tasks.reading import lines_of, open_regular

logger = logging.getLogger(__name__)

Row = dict[str, Any]

_STRICT = ConfigDict(strict=True)
_TEXT: TypeAdapter[Any] = TypeAdapter(str, config=_STRICT)
_TEXTS: TypeAdapter[Any] = TypeAdapter(list[str], config=_STRICT)
SHAPES: dict[str, TypeAdapter[Any]] = {
    **dict.fromkeys(("input", "context", "evaluation"), _TEXT),
    **dict.fromkeys(("answers", "instructions", "outputs"), _TEXTS),
    "all_classes": TypeAdapter(list[str] | None, config=_STRICT),
    "length": TypeAdapter(int, config=_STRICT),
}
"""What the published files have in their fields."""


def read_rows(path: Path, required: Sequence[str]) -> list[Row]:
    """The JSON objects of a file, one per line.

    Raises `UserError`, which names file, line and field, for a broken line and a field that is missing or of another
    shape than in `SHAPES`.
    """
    try:
        with open_regular(path) as file:
            return list(_parse(lines_of(file, str(path)), str(path), required))
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None


def read_zipped_rows(archive: Path, name: str, required: Sequence[str]) -> list[Row]:
    """`read_rows` for the member of a zip archive whose file name, without folders, is `name`."""
    try:
        with zipfile.ZipFile(archive) as content:
            member = next((item for item in content.namelist() if item.rpartition("/")[2] == name), None)
            if member is None:
                raise UserError(f"{str(archive)!r} holds no {name!r}")
            with content.open(member) as file:
                source = f"{archive}:{member}"
                return list(_parse(lines_of(file, source), source, required))
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:  # also one with a password
        raise UserError(f"cannot read {str(archive)!r}: {error}; remove it to download it again") from None


def find_in_folder(folder: Path, name: str, subfolders: Sequence[str]) -> Path:
    """The file of that name in a folder or in the first of its subfolders that has it.

    Raises `AbsentDataError` where none has it, `UserError` where there is no such folder.
    """
    candidates = [folder / name, *(folder / subfolder / name for subfolder in subfolders)]
    found = next((path for path in candidates if path.exists() and not path.is_dir()), None)
    if found is None:
        if not folder.is_dir():
            raise UserError(f"data_dir = {str(folder)!r} is no folder")
        raise AbsentDataError(f"data_dir has no {name!r}: looked for {', '.join(str(path) for path in candidates)}")
    return found


def hub_file(repository: str, name: str, options: Options) -> Path:
    """A file of a data set repository on the hub, downloaded or from the cache. Raises `UserError`."""
    try:
        return hub.file_of_dataset(repository, name, hub.commit_of_dataset(repository, options.data_revision))
    except OSError as error:
        raise _not_from_hub(f"{name!r} of the data set {repository!r}", error) from None


def hub_source(repository: str, options: Options) -> dict[str, str] | None:
    """Repository and commit of the hub's data, None where `data_dir` has them instead. Raises `UserError`."""
    if options.data_dir is not None:
        return None
    try:
        return {"repository": repository, "revision": hub.commit_of_dataset(repository, options.data_revision)}
    except OSError as error:
        raise _not_from_hub(f"the data set {repository!r}", error) from None


def _not_from_hub(what: str, error: OSError) -> UserError:
    return UserError(f"cannot get {what} from the hub: {error}; set data_dir to a folder with the benchmark's files")


def _parse(lines: Iterable[bytes], source: str, required: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and deep nesting
            raise UserError(f"{source!r} line {number} is not valid JSON: {error}") from None
        missing = [field for field in required if not isinstance(row, dict) or field not in row]
        if missing:
            raise UserError(f"{source!r} line {number} has no {', '.join(map(repr, missing))}")
        _check(row, f"{source!r} line {number}")
        yield row


def _check(row: Row, place: str) -> None:
    """Raise `UserError` for a field of another shape. A text instead of a list of answers is the only answer."""
    if isinstance(row.get("answers"), str):
        logger.warning("%s: answers is a text, not a list; it is taken as the only answer", place)
        row["answers"] = [row["answers"]]
    for name, shape in SHAPES.items():
        if name not in row:
            continue
        try:
            shape.validate_python(row[name])
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join([name, *map(str, first["loc"])])
            said = repr(first["input"])
            raise UserError(f"{place}: {where} = {said[:100]}: {requirement(first)}") from None
