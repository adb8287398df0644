"""Many records of growing and shrinking lengths in one process: does memory stay level?

    python -m tools.soak --records 500

Prompts of the embedded model, through the batches of `pred.py`; lengths go up and down between 40 tokens and --longest,
below the window and beyond. What is level is measured from the 50th record on: the process's resident memory, and on a
GPU what PyTorch has allocated. Linux only.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from typing_extensions import override

from pipeline.batches import Batches
from pipeline.engine import ModelEngine
from tasks.base import Dialogue, GenerationTask, Line, Record, Request
from tasks.options import Options
from tasks.results import Score

WARM_UP = 50
PERIOD = 40
"""Records from one shortest prompt to the next; the longest comes once before memory is watched."""
SHORTEST = 40
NEW_TOKENS = 4


class Waves(GenerationTask):
    """Random prompts whose lengths go up and down."""

    name: ClassVar[str] = "soak"
    label: ClassVar[str] = "Soak"
    folder: ClassVar[str] = "soak"
    prefix: ClassVar[str] = "soak"

    def __init__(self, records: int, longest: int, vocabulary: int) -> None:
        """longest: in tokens. vocabulary: how many token ids to draw from."""
        self._records = records
        self._longest = longest
        self._vocabulary = vocabulary

    @override
    def datasets(self) -> list[str]:
        return [self.name]

    @override
    def records(self, options: Options, dataset: str) -> Iterable[Record]:
        return ({"id": str(n), "length": wave(n, self._longest)} for n in range(self._records))

    @override
    def dialogue(self, options: Options, dataset: str, record: Record, tokenizer: Any) -> Dialogue:
        draw = random.Random(record["id"])
        said = yield Request([draw.randrange(self._vocabulary) for _ in range(record["length"])], NEW_TOKENS)
        return {"pred": said.text, "prefill_len": said.prompt_tokens, "final_len": said.total_tokens}

    @override
    def score(self, options: Any, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        return {}

    @override
    def columns(self, file: str, results: Mapping[str, Any]) -> dict[str, Score]:
        return {}


@dataclass(frozen=True)
class Levels:
    """Bytes after each record."""

    resident: list[int]
    allocated: list[int]
    """On the GPU; empty without one."""

    def growth(self, bytes_: Sequence[int]) -> float:
        """The highest level after the first `WARM_UP` records over the highest within them, less 1."""
        return max(bytes_[WARM_UP:]) / max(bytes_[:WARM_UP]) - 1


def wave(number: int, longest: int) -> int:
    """A record's prompt length: a triangle between `SHORTEST` and `longest`."""
    place = number % PERIOD
    up = min(place, PERIOD - place) / (PERIOD // 2)
    return SHORTEST + round(up * (longest - SHORTEST))


def soak(engine: ModelEngine, records: int, longest: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Resident and allocated bytes after each record. Raises `RuntimeError` if a record fails."""
    task = Waves(records, longest, engine.model.config.vocab_size)
    options = Options.model_validate({"max_pe": longest + NEW_TOKENS})
    wanted = list(task.records(options, task.name))
    for line in Batches(task, engine, batch_size).predict(options, task.name, wanted):
        if "error" in line:
            raise RuntimeError(f"record {line['id']} failed: {line['error']}")
        yield resident_bytes(), torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def run(engine: ModelEngine, records: int, longest: int, batch_size: int = 1) -> Levels:
    """The levels of a whole run."""
    resident, allocated = zip(*soak(engine, records, longest, batch_size), strict=True)
    return Levels(list(resident), list(allocated) if torch.cuda.is_available() else [])


def resident_bytes() -> int:
    """Of this process, as Linux counts."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def load(device: str | None = None) -> ModelEngine:
    """The embedded model with GALI."""
    from models.DPI.dpi import get_model_and_tokenizer

    params = {"local_window": 256, "chunk_coe": 192}
    return ModelEngine(*get_model_and_tokenizer("tiny", None, "dpi", params, device=device))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--longest", type=int, default=1200, metavar="TOKENS")
    parser.add_argument("--batch-size", type=int, default=1, metavar="RECORDS")
    parser.add_argument("--device", help="such as cuda; the fastest by default")
    arguments = parser.parse_args()
    if arguments.records <= WARM_UP:
        parser.error(f"--records must be above {WARM_UP}, from which on memory is watched")
    levels = run(load(arguments.device), arguments.records, arguments.longest, arguments.batch_size)
    for name, bytes_ in (("resident", levels.resident), ("allocated on the GPU", levels.allocated)):
        if bytes_:
            after = bytes_[WARM_UP:]
            sys.stdout.write(
                f"{name}: at most {max(bytes_[:WARM_UP]) / 2**20:.1f} MiB in the first {WARM_UP} records, then "
                f"{min(after) / 2**20:.1f} to {max(after) / 2**20:.1f} MiB, at the end {bytes_[-1] / 2**20:.1f} MiB; "
                f"growth {levels.growth(bytes_):+.1%}\n"
            )


if __name__ == "__main__":
    main()
