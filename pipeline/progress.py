"""What is told of a run while it goes on: one bar, or lines of a log where nobody sees a bar; times; a tracker."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from tqdm import tqdm

from pipeline.files import encoded, naming, open_to_write
from pipeline.timing import duration
from tasks.base import Line
from tasks.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import ExperimentConfig

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0
"""Of a log that stands for the bar."""
TIMES = "times.csv"
"""In an experiment's folder; of process n of several, times-n.csv."""
COLUMNS = ("dataset", "id", "prompt_tokens", "new_tokens", "seconds", "failed")

Observer = Callable[[str, Line, float], None]
"""Is told of each record that is ready: its data set, its line, and the seconds since the record before it."""


class Progress:
    """A bar on a terminal; elsewhere a line a minute. Both have tokens per second and the time that remains.

    Tokens are those of prompts and continuations since the run began.
    """

    def __init__(self, total: int, name: str, *, show: bool) -> None:
        """name: what stands before the bar. show: false in all processes of a run but one."""
        self._total, self._name, self._show = total, name, show
        self._bar = tqdm(total=total, desc=name, unit="record", disable=not (show and sys.stderr.isatty()))
        self._done = 0
        self._tokens = 0
        self._start = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        """See the class."""
        return self

    def extend(self, records: int, name: str) -> None:
        """Let the bar stand for more records, and take another name."""
        self._total += records
        self._name = name
        self._bar.total = self._total
        self._bar.set_description(name)

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is."""
        self.close()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def __call__(self, dataset: str, line: Line, seconds: float) -> None:
        """An `Observer`."""
        self._done += 1
        self._tokens += int(line.get("final_len", 0))
        now = time.monotonic()
        rate = f"{self._tokens / max(now - self._start, 1e-6):,.0f} tokens/s"
        self._bar.set_postfix_str(f"{dataset}, {rate}", refresh=False)
        self._bar.update()
        if self._show and self._bar.disable and now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            left = duration((now - self._start) / self._done * (self._total - self._done))
            logger.info("%s: %d of %d records, %s, %s left", self._name, self._done, self._total, rate, left)


class Times:
    """Tokens and seconds of each record, appended to a table beside the predictions, which hold no times.

    Seconds are those since the record before it in this process was ready. Records of one batch are ready together, so
    a batch's time stands at its first one. A record that is tried again has a line for each try.
    """

    def __init__(self, folder: Path, rank: int, processes: int) -> None:
        """folder: of the experiment. Each of several processes has a file of its own."""
        self._path = folder / (TIMES if processes == 1 else f"times-{rank}.csv")
        self._file: BinaryIO | None = None

    def __enter__(self) -> Times:
        """The file is opened at the first record: another process may yet have to make the folder."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        if self._file is not None:
            self._file.close()

    def __call__(self, dataset: str, line: Line, seconds: float) -> None:
        """An `Observer`."""
        prompt, final = line.get("prefill_len"), line.get("final_len")
        new = final - prompt if isinstance(prompt, int) and isinstance(final, int) else None
        self._write((dataset, line["id"], prompt, new, f"{seconds:.3f}", int("error" in line)))

    def _write(self, cells: tuple[Any, ...]) -> None:
        with naming(self._path):
            rows = [cells]
            if self._file is None:
                self._file = open_to_write(self._path, os.O_APPEND)
                rows = [cells] if self._path.stat().st_size else [COLUMNS, cells]
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            self._file.write(encoded(text.getvalue()))
            self._file.flush()


def check_tracker(cfg: ExperimentConfig) -> None:
    """Raise `UserError` if a configuration asks for a tracker that is not installed."""
    if cfg.tracker is not None and importlib.util.find_spec(cfg.tracker) is None:
        raise UserError(
            f"tracker = {cfg.tracker!r}: the package is not installed; pip install {cfg.tracker}, or leave the key out"
        )


class Tracker:
    """Sends a run's progress to trackio or wandb, which have the same calls: project `gali`, the experiment's name."""

    def __init__(self, cfg: ExperimentConfig, package: str) -> None:
        """package: "trackio" or "wandb"."""
        self._cfg = cfg
        self._package: Any = importlib.import_module(package)
        self._records = self._failed = self._tokens = 0
        self._seconds = 0.0

    def __enter__(self) -> Tracker:
        """Begin a run."""
        self._package.init(project="gali", name=f"{self._cfg.task}/{self._cfg.exp_name}", config=self._cfg.flat())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._package.finish()

    def __call__(self, dataset: str, line: Line, seconds: float) -> None:
        """An `Observer`."""
        self._records += 1
        self._failed += "error" in line
        self._tokens += int(line.get("final_len", 0))
        self._seconds += seconds
        self._package.log(
            {
                "dataset": dataset,
                "records": self._records,
                "failed": self._failed,
                "tokens": self._tokens,
                "tokens_per_second": self._tokens / max(self._seconds, 1e-6),
                "seconds": seconds,
            }
        )
