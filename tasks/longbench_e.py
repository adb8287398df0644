"""LongBench-E: 13 of LongBench's tasks with records spread evenly over three ranges of length.

The range is that of the field `length`, in words: below 4,000, below 8,000, and above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tasks.base import Line
from tasks.longbench import LongBench
from tasks.metrics.summary import summarise

if TYPE_CHECKING:
    from pipeline.config import ExperimentConfig

DATASETS = (
    "qasper",
    "multifieldqa_en",
    "hotpotqa",
    "2wikimqa",
    "gov_report",
    "multi_news",
    "trec",
    "triviaqa",
    "samsum",
    "passage_count",
    "passage_retrieval_en",
    "lcc",
    "repobench-p",
)
BUCKETS = ("0-4k", "4-8k", "8k+")


def bucket(length: int) -> str:
    """The range of a record of that many words."""
    return BUCKETS[(length >= 4000) + (length >= 8000)]


class LongBenchE(LongBench):
    """LongBench-E. Results are by data set and range; null where a range has no record."""

    name: ClassVar[str] = "longbench_e"
    folder: ClassVar[str] = "lb/pred_e"
    file_suffix: ClassVar[str] = "_e"
    all_datasets: ClassVar[tuple[str, ...]] = DATASETS

    def datasets(self, cfg: ExperimentConfig) -> list[str]:
        return list(DATASETS)

    def _needed_to_score(self) -> tuple[str, ...]:
        return ("length",)

    def _published(self, pairs: Sequence[tuple[Line, float]]) -> dict[str, float | None]:
        return {name: super(LongBenchE, self)._published(part) if part else None for name, part in _split(pairs)}

    def _detail(self, pairs: Sequence[tuple[Line, float]]) -> dict[str, Any]:
        ranges = {name: summarise([value for _, value in part]) if part else None for name, part in _split(pairs)}
        return {**super()._detail(pairs), "ranges": ranges}


def _split(pairs: Sequence[tuple[Line, float]]) -> list[tuple[str, list[tuple[Line, float]]]]:
    return [(name, [pair for pair in pairs if bucket(pair[0]["length"]) == name]) for name in BUCKETS]


TASK = LongBenchE()
