"""A benchmark and an engine without a model, and workers without a launcher."""

import time
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.synchronize import Barrier
from typing import Any

from pipeline.distributed import Workers
from tasks.base import Engine, Line, Record, Task
from tasks.needle import NeedleOptions
from tasks.results import Score


class FakeTask(Task):
    """Numbers 0 … count − 1 in each data set; a prediction is the square. `broken` ids raise.

    It goes by needle's name and keys, so that configurations name a registered benchmark.
    """

    name = "needle"
    label = "Squares"
    folder = "needle/pred"
    prefix = "squares"
    Options = NeedleOptions

    def __init__(self, count: int = 5, broken: Sequence[str] = (), seconds: float = 0.0) -> None:
        self.count = count
        self.broken = set(broken)
        self.seconds = seconds
        self.predicted: list[str] = []

    def datasets(self) -> list[str]:
        return ["one", "two"]

    def known_datasets(self) -> list[str]:
        return ["one", "two", "three"]

    def records(self, options: NeedleOptions, dataset: str) -> Iterable[Record]:
        return ({"id": str(number), "number": number} for number in range(self.count))

    def prompt(self, options: NeedleOptions, dataset: str, record: Record, tokenizer: Any) -> list[int]:
        return [1] * record["number"]

    def predict(self, engine: Engine, options: NeedleOptions, dataset: str, record: Record) -> Line:
        time.sleep(self.seconds)
        self.predicted.append(f"{dataset}/{record['id']}")
        if record["id"] in self.broken:
            raise RuntimeError("out of memory")
        return {"pred": record["number"] ** 2, "prefill_len": 3, "final_len": 4}

    def score(self, options: NeedleOptions | None, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        return {"result.json": {name: float(sum(line["pred"] for line in found)) for name, found in lines.items()}}

    def columns(self, file: str, results: Mapping[str, Any]) -> dict[str, Score]:
        """Of a number, or of an object with the keys of `Score`."""
        return {
            name: Score(**value) if isinstance(value, Mapping) else Score(value)
            for name, value in results[file].items()
        }


class FakeWorkers(Workers):
    """`pipeline.distributed.Workers` over a barrier of multiprocessing."""

    def __init__(self, rank: int = 0, count: int = 1, barrier: Barrier | None = None) -> None:
        self.rank = self.index = rank
        self.count = self.processes = count
        self.is_main = rank == 0
        self.writes = True
        self._barrier = barrier

    def barrier(self) -> None:
        if self._barrier is not None:
            self._barrier.wait(timeout=20)
