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
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from pipeline.config import check_exp_name
from pipeline.files import encoded, naming, open_to_write, read_json, replacing, write_json, write_text
from pipeline.shapes import check_run
from tasks.base import Line, Task
from tasks.errors import UserError
from tasks.reading import read_regular

__all__ = [
    "Appender",
    "FileLine",
    "MissingField",
    "belongs_to",
    "best_lines",
    "clear",
    "differences",
    "dump_line",
    "experiment_folder",
    "has_predictions",
    "is_failed",
    "is_prediction",
    "list_experiments",
    "lock",
    "make_folder",
    "merge",
    "part_file",
    "part_files",
    "prediction_file",
    "read_json",
    "read_lines",
    "read_run",
    "read_unmerged",
    "replacing",
    "wait_for",
    "wait_until",
    "write_json",
    "write_text",
]

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
LOCK_FILE = ".lock"
SECONDS_OF_NETWORK = 90.0
"""After which a file of another machine is seen; file systems over a network keep what they saw for up to a minute."""


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
        if folder.is_dir() and _may_belong_to(folder, task)
    ]
    if not found:
        raise UserError(f"no experiments of {task.name!r} in {str(root)!r}; pred.py writes them")
    return found


def _may_belong_to(folder: Path, task: Task) -> bool:
    """`belongs_to`; true of a folder with a broken run record, so that whoever reads it names it."""
    try:
        return belongs_to(folder, task)
    except UserError:
        return True


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
    return check_run(read_json(path), repr(str(path)))


def has_predictions(folder: Path) -> bool:
    """Whether any record of an experiment has been tried."""
    return any(path.stat().st_size for pattern in ("*.jsonl", ".part-*.jsonl") for path in folder.glob(pattern))


class FileLine(dict[str, Any]):
    """A line that knows where it stands. A field that it lacks is a mistake in the file: `MissingField`."""

    place: str = ""
    """File and line number."""

    def __missing__(self, key: str) -> Any:
        """What a benchmark finds where it looks for a field that is not there."""
        raise MissingField(key, self.place)


class MissingField(KeyError):
    """A field that a line lacks. place: file and line number."""

    def __init__(self, key: str, place: str) -> None:
        """See the class."""
        super().__init__(key)
        self.place = place


def read_lines(path: Path, *, repair: bool = False, drop_cut: bool = False) -> list[Line]:
    """The lines of a prediction file, each a `FileLine`.

    A last line that was cut off is dropped and removed from the file where `repair` is true, and dropped alone where
    `drop_cut` is. Any other line that is no JSON object, and a cut last line without either, raises `UserError` and
    leaves the file as it is. A line with a number that JSON does not have (NaN, infinity) is read as failed, so that
    its record runs again.
    """
    data = read_regular(path) if path.exists() or path.is_symlink() else b""
    lines: list[Line] = []
    position = 0
    for number, piece in enumerate(data.splitlines(keepends=True), start=1):
        position += len(piece)
        if not piece.strip():
            continue
        place = f"{str(path)!r} line {number}"
        try:
            lines.append(_parse_line(piece, place))
        except (ValueError, RecursionError):  # also numbers of thousands of digits, and deep nesting
            last = not data[position:].strip()
            if last and drop_cut:
                return lines
            if last and repair:
                logger.warning("%s: line %d was cut off and is removed; its record runs again", path, number)
                _truncate(path, position - len(piece))
                return lines
            hint = "pred.py repairs it when it goes on" if last else "restore it, or run pred.py --overwrite"
            raise UserError(f"{place} is no JSON object ({hint})") from None
    if repair and data and not data.endswith(b"\n"):
        with naming(path), open_to_write(path, os.O_APPEND) as file:
            file.write(b"\n")
    return lines


def _parse_line(piece: bytes, place: str) -> Line:
    """A line's object. Raises `ValueError` if it is none, `UserError` if its id cannot be one."""
    strange: list[str] = []

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            strange.append(text)
        return value

    content = json.loads(piece, parse_constant=strange.append, parse_float=number)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    if not isinstance(content.get("id", ""), str | int):
        raise UserError(f"{place}: id = {content['id']!r} is neither a text nor a number")
    if strange:
        logger.warning("%s holds %s, which is no number of JSON; it counts as failed", place, strange[0])
        content = {key: content[key] for key in ("id",) if key in content} | {"error": f"it held {strange[0]}"}
    line = FileLine(content)
    line.place = place
    return line


def _truncate(path: Path, size: int) -> None:
    with naming(path), open_to_write(path, 0) as file:
        file.truncate(size)
        os.fsync(file.fileno())


def is_failed(line: Mapping[str, Any]) -> bool:
    """Whether a line holds an error instead of a prediction.

    A prediction that is null is none, so its line has failed too; an error that is null beside a prediction is none.
    """
    if line.get("error") is not None or any(line[key] is None for key in line if is_prediction(key)):
        return True
    return "error" in line and not line.keys() - {"id", "error"}


def is_prediction(key: str) -> bool:
    """Whether a field holds a predicted text: "pred", or "<model>_pred" as L-Eval's own programs call it."""
    return key == "pred" or key.endswith("_pred")


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


def wait_until(true: Callable[[], bool]) -> bool:
    """Whether something comes true within `SECONDS_OF_NETWORK`: a folder over a network may be seen as it was."""
    end = time.monotonic() + SECONDS_OF_NETWORK
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def wait_for(folder: Path, sizes: Mapping[str, int]) -> bool:
    """Wait until parts that other processes wrote are seen here, whole; whether they are.

    sizes: bytes by file name. Where they are not, they are merged at the next start.
    """

    def there() -> bool:
        found = {path.name: path.stat().st_size for path in folder.glob(".part-*")}
        return all(found.get(name, -1) >= size for name, size in sizes.items())

    seen = wait_until(there)
    if not seen:
        logger.warning("%s: some of what other machines wrote is not seen here yet; start the command again", folder)
    return seen


def merge(folder: Path, dataset: str, order: Sequence[str]) -> list[Line]:
    """Bring a prediction file into order: parts merged in, one line per record, records as in `order`.

    A record with several lines keeps its prediction if it has one, else its last error. Lines of records that
    `order` does not name (a larger run before) stay behind the others. Returns the lines.
    """
    path = prediction_file(folder, dataset)
    parts = part_files(folder, dataset)
    before = read_lines(path, repair=True)
    found = [*before, *(line for part in parts for line in read_lines(part, repair=True))]
    best = _best_by_id(path, found)
    ordered = [best.pop(identity) for identity in order if identity in best] + list(best.values())
    if ordered != before:
        write_text(path, "".join(dump_line(line) for line in ordered))
    for part in parts:
        part.unlink()
    return ordered


def read_unmerged(folder: Path, dataset: str) -> dict[Any, Line]:
    """What `merge` would make of a data set, by id; nothing is written. Raises `UserError` as it does."""
    path = prediction_file(folder, dataset)
    files = [path, *part_files(folder, dataset)]
    return _best_by_id(path, [line for file in files for line in read_lines(file, drop_cut=True)])


def _best_by_id(path: Path, lines: Sequence[Line]) -> dict[Any, Line]:
    if any("id" not in line for line in lines):
        raise UserError(f"{str(path)!r} has lines without 'id': another program wrote it; choose another exp_name")
    return {line["id"]: line for line in best_lines(lines)}


def best_lines(lines: Iterable[Line]) -> list[Line]:
    """One line per record: its prediction if it has one, else its last error. Lines without `id` are all kept."""
    best: dict[Any, Line] = {}
    for number, line in enumerate(lines):
        key = ("id", line["id"]) if "id" in line else ("line", number)
        if key not in best or is_failed(best[key]):
            best[key] = line
    return list(best.values())


def dump_line(line: Line) -> str:
    """A line as it stands in a file. Raises `ValueError` for NaN and infinity, `TypeError` for what is no JSON."""
    return encoded(json.dumps(line, ensure_ascii=False, allow_nan=False)).decode() + "\n"


class Appender:
    """Appends lines to a prediction file; each is on disk when `write` returns. Without a path it writes nothing."""

    def __init__(self, path: Path | None) -> None:
        """path: the file; it is made if it is not there."""
        self._path = path
        self._file: BinaryIO | None = None

    def __enter__(self) -> Appender:
        """Open the file."""
        self._file = open_to_write(self._path, os.O_APPEND) if self._path is not None else None
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        if self._file is not None:
            self._file.close()

    def write(self, line: Line) -> None:
        """Append one line."""
        if self._file is not None and self._path is not None:
            with naming(self._path):
                self._file.write(dump_line(line).encode())
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
    with open_to_write(folder / LOCK_FILE, 0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is writing to {str(folder)!r}; wait for it or stop it") from None
        yield


def clear(folder: Path) -> None:
    """Remove an experiment's own files (run record, predictions, parts, results, times), and nothing else."""
    for pattern in (RUN_FILE, "*.jsonl", ".part-*.jsonl", "result*.json", "times.csv", "times-*.csv", ".*.tmp"):
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
