"""Result folders: where experiments lie, the run record, and prediction files that survive being killed.

An experiment is a folder `<results>/<task folder>/<exp_name>/` with

run.json          configuration, versions, git revision, seed, how many records each data set has
<dataset>.jsonl   one line per record; a failed record's line has `error` instead of a prediction
result.json ...   what `eval.py` writes

While several processes work, each appends to its own `.part-<rank>-<dataset>.jsonl`; they are merged at the end, or
at the next start if the run was killed. A line is on disk before the next record starts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from pipeline.config import check_exp_name
from tasks.base import Line, Task
from tasks.errors import UserError

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
LOCK_FILE = ".lock"


def experiment_folder(results: Path, task: Task, exp_name: str) -> Path:
    """The folder of an experiment. Raises `UserError` for a name that would leave the results folder."""
    try:
        check_exp_name(exp_name)
    except ValueError as error:
        raise UserError(str(error)) from None
    return results / task.folder / exp_name


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises `UserError` if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {str(folder)!r}: {error.strerror}") from None


def list_experiments(results: Path, task: Task) -> list[Path]:
    """Folders of all experiments of a task, sorted by name. Raises `UserError` if there are none."""
    root = results / task.folder
    found = [
        folder
        for folder in (sorted(root.iterdir()) if root.is_dir() else [])
        if folder.is_dir() and belongs_to(folder, task)
    ]
    if not found:
        raise UserError(f"no experiments of {task.name!r} in {str(root)!r}; pred.py writes them")
    return found


def belongs_to(folder: Path, task: Task) -> bool:
    """Whether a folder is an experiment of this task: two tasks may share one results folder."""
    run = read_run(folder)
    if run is not None:
        return bool(run["config"]["task"] == task.name)
    return task.scores_foreign and any(folder.glob("*.jsonl"))


def read_run(folder: Path) -> dict[str, Any] | None:
    """The run record, or None where there is none. Raises `UserError` if it is broken."""
    path = folder / RUN_FILE
    if not path.exists():
        return None
    run = read_json(path)
    if not isinstance(run, dict) or not isinstance(run.get("config"), dict):
        raise UserError(f"{str(path)!r} is no run record; remove the folder or run pred.py --overwrite")
    return run


def has_predictions(folder: Path) -> bool:
    """Whether any record of an experiment has been tried."""
    return any(path.stat().st_size for pattern in ("*.jsonl", ".part-*.jsonl") for path in folder.glob(pattern))


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `UserError` if it is unreadable or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not valid JSON: {error}") from None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that it is either the old one or the whole new one."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is either the old one or the whole new one."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` at the end; after an error `path` is as before."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_lines(path: Path, *, repair: bool = False) -> list[Line]:
    """The lines of a prediction file.

    A last line that was cut off is dropped and removed from the file where `repair` is true. Any other line that is
    no JSON object, and a cut last line without `repair`, raises `UserError` and leaves the file as it is.
    """
    data = path.read_bytes() if path.exists() else b""
    lines: list[Line] = []
    position = 0
    for number, piece in enumerate(data.splitlines(keepends=True), start=1):
        position += len(piece)
        if not piece.strip():
            continue
        try:
            line = json.loads(piece)
            if not isinstance(line, dict):
                raise ValueError("not a JSON object")
        except ValueError:
            last = not data[position:].strip()
            if last and repair:
                logger.warning("%s: line %d was cut off and is removed; its record runs again", path, number)
                _truncate(path, position - len(piece))
                return lines
            hint = "pred.py repairs it when it goes on" if last else "restore it, or run pred.py --overwrite"
            raise UserError(f"{str(path)!r} line {number} is no JSON object ({hint})") from None
        lines.append(line)
    if repair and data and not data.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    return lines


def _truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def is_failed(line: Mapping[str, Any]) -> bool:
    """Whether a line holds an error instead of a prediction."""
    return "error" in line


def prediction_file(folder: Path, dataset: str) -> Path:
    """Where a data set's predictions lie."""
    return folder / f"{dataset}.jsonl"


def part_file(folder: Path, dataset: str, rank: int) -> Path:
    """Where one of several processes writes its share of them."""
    return folder / f".part-{rank}-{dataset}.jsonl"


def part_files(folder: Path, dataset: str) -> list[Path]:
    """The shares that are there, by rank."""
    found = (path for path in folder.glob(".part-*") if path.name.split("-", 2)[2] == f"{dataset}.jsonl")
    return sorted(found, key=lambda path: int(path.name.split("-", 2)[1]))


def merge(folder: Path, dataset: str, order: Sequence[str]) -> list[Line]:
    """Bring a prediction file into order: parts merged in, one line per record, records as in `order`.

    A record with several lines keeps its prediction if it has one, else its last error. Lines of records that
    `order` does not name (a larger run before) stay behind the others. Returns the lines.
    """
    path = prediction_file(folder, dataset)
    parts = part_files(folder, dataset)
    before = read_lines(path, repair=True)
    found = [*before, *(line for part in parts for line in read_lines(part, repair=True))]
    if any("id" not in line for line in found):
        raise UserError(f"{str(path)!r} has lines without 'id': another program wrote it; choose another exp_name")
    best = {line["id"]: line for line in best_lines(found)}
    ordered = [best.pop(identity) for identity in order if identity in best] + list(best.values())
    if ordered != before:
        write_text(path, "".join(dump_line(line) for line in ordered))
    for part in parts:
        part.unlink()
    return ordered


def best_lines(lines: Iterable[Line]) -> list[Line]:
    """One line per record: its prediction if it has one, else its last error. Lines without `id` are all kept."""
    best: dict[Any, Line] = {}
    for number, line in enumerate(lines):
        key = ("id", line["id"]) if "id" in line else ("line", number)
        if key not in best or is_failed(best[key]):
            best[key] = line
    return list(best.values())


def dump_line(line: Line) -> str:
    """A line as it stands in a file."""
    return json.dumps(line, ensure_ascii=False) + "\n"


class Appender:
    """Appends lines to a prediction file; each is on disk when `write` returns. Without a path it writes nothing."""

    def __init__(self, path: Path | None) -> None:
        """path: the file; it is made if it is not there."""
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> Appender:
        """Open the file."""
        self._file = self._path.open("a", encoding="utf-8") if self._path is not None else None
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        if self._file is not None:
            self._file.close()

    def write(self, line: Line) -> None:
        """Append one line."""
        if self._file is not None:
            self._file.write(dump_line(line))
            self._file.flush()
            os.fsync(self._file.fileno())


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the folder against a second run; the lock goes with the process, however it ends.

    Raises `UserError` if another process holds it. Where the system has no such locks, this does nothing.
    """
    if fcntl is None:
        yield
        return
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is writing to {str(folder)!r}; wait for it or stop it") from None
        yield


def clear(folder: Path) -> None:
    """Remove an experiment's own files (run record, predictions, parts, results), and nothing else."""
    for pattern in (RUN_FILE, "*.jsonl", ".part-*.jsonl", "result*.json", ".*.tmp"):
        for path in folder.glob(pattern):
            path.unlink()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterable[str]:
    """What differs between two configurations, key by key, parameters one by one."""
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from (f"{key}.{text}" for text in differences(before, after))
        elif before != after:
            yield f"{key} was {before!r}, is {after!r}"
