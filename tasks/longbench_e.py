"""LongBench-E: 13 of LongBench's tasks with records spread evenly over three ranges of length.

The range is that of the field `length`, in words: below 4,000, below 8,000, and above.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from typing_extensions import override

from tasks.longbench import SUBSETS, LongBench, Marks, summary
from tasks.results import Score, detailed

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
    label: ClassVar[str] = "LongBench-E"
    folder: ClassVar[str] = "lb/pred_e"
    prefix: ClassVar[str] = "lb_e"
    file_suffix: ClassVar[str] = "_e"
    all_datasets: ClassVar[tuple[str, ...]] = DATASETS

    @override
    def datasets(self) -> list[str]:
        return list(DATASETS)

    @override
    def columns(self, file: str, results: Mapping[str, Any]) -> dict[str, Score]:
        """By data set and range."""
        return {
            f"{dataset} {name}": detailed(value, results, "ranges", dataset, SUBSETS[file], name)
            for dataset, values in results.get(file, {}).items()
            for name, value in values.items()
        }

    @override
    def _needed_to_score(self) -> tuple[str, ...]:
        return ("length",)

    @override
    def _published(self, marks: Marks) -> dict[str, float | None]:
        return {name: super(LongBenchE, self)._published(part) if part else None for name, part in _split(marks)}

    @override
    def _add_detail(self, detail: dict[str, Any], subset: str, chosen: Mapping[str, Marks]) -> None:
        ranges = detail.setdefault("ranges", {dataset: {} for dataset in detail["datasets"]})
        for dataset, marks in chosen.items():
            ranges[dataset][subset] = {name: asdict(summary(part)) for name, part in _split(marks)}


def _split(marks: Marks) -> list[tuple[str, Marks]]:
    return [(name, [pair for pair in marks if bucket(pair[0]["length"]) == name]) for name in BUCKETS]


TASK = LongBenchE()
