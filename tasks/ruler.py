"""RULER (Hsieh et al., 2024, arXiv 2404.06654): its six tasks that need no download.

Prompts are generated (`tasks/ruler_prompts.py`); prompt and room for the answer together are exactly as long as
`sequence_lengths` say. The score is the share of a record's answers that occur in the prediction, in percent. In the
three needle tasks the needle lies deeper from record to record, evenly from the beginning of the haystack to its end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

from pydantic import Field
from typing_extensions import override

from tasks.base import Dialogue, GenerationTask, Line, Record, Request
from tasks.chat import chat_ids
from tasks.errors import UserError
from tasks.metrics.summary import summarise
from tasks.options import Options, Positive
from tasks.results import DETAIL_FILE, RESULT_FILE, Score, detailed
from tasks.ruler_prompts import DatasetName, Sample, fit, tokens_to_generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATASETS: tuple[DatasetName, ...] = get_args(DatasetName)


class RulerOptions(Options):
    """Lengths and how many records of each."""

    sequence_lengths: tuple[Positive, ...] = Field((), description="tokens of prompt and answer; empty: max_pe")
    samples: Annotated[Positive, Field(le=10_000)] = Field(32, description="records per data set and length")


class Ruler(GenerationTask):
    """Records are samples of each length."""

    name: ClassVar[str] = "ruler"
    label: ClassVar[str] = "RULER"
    folder: ClassVar[str] = "ruler/pred"
    prefix: ClassVar[str] = "ruler"
    Options = RulerOptions

    @override
    def datasets(self) -> list[str]:
        return list(DATASETS)

    @override
    def known_datasets(self) -> list[str]:
        return list(DATASETS)

    @override
    def records(self, options: RulerOptions, dataset: str) -> Iterable[Record]:
        lengths = sorted(set(options.sequence_lengths)) or [options.max_pe]
        if lengths[-1] > options.max_pe:
            raise UserError(
                f"sequence_lengths: {lengths[-1]} is beyond max_pe = {options.max_pe}; lower it, or raise max_pe"
            )
        for length in lengths:
            for number in range(options.samples):
                depth = number / (options.samples - 1) if options.samples > 1 else 0.5
                yield {"id": f"{length}-{number:04d}", "context_length": length, "depth_percent": round(100 * depth, 2)}

    @override
    def most_new_tokens(self, options: RulerOptions, dataset: str) -> int:
        return options.max_new_tokens or tokens_to_generate(_known(dataset))

    @override
    def prompt(
        self, options: RulerOptions, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        return self._fit(options, dataset, record, tokenizer)[0]

    @override
    def dialogue(
        self, options: RulerOptions, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> Dialogue:
        ids, sample = self._fit(options, dataset, record, tokenizer)
        generation = yield Request(ids, self.most_new_tokens(options, dataset))
        return {
            "context_length": record["context_length"],
            "depth_percent": record["depth_percent"],
            "answers": list(sample.answers),
            "pred": generation.text,
            "prefill_len": generation.prompt_tokens,
            "final_len": generation.total_tokens,
        }

    def _fit(
        self, options: RulerOptions, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[int], Sample]:
        """Token ids of a record's prompt, and its parts."""

        def tokenise(sample: Sample) -> list[int]:
            return chat_ids(
                tokenizer, sample.message, mode=options.chat, system_prompt=options.system_prompt,
                answer_prefix=sample.answer_prefix,
            )  # fmt: skip

        room = record["context_length"] - self.most_new_tokens(options, dataset)
        seed = f"{options.seed}/{dataset}/{record['id']}"
        return fit(_known(dataset), seed, record["depth_percent"] / 100, room, tokenise)

    @override
    def score(self, options: RulerOptions, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        """`result.json`: `{data set: {length: score}}`, in percent."""
        detail = {}
        for dataset, its_lines in lines.items():
            marks: dict[int, list[float]] = defaultdict(list)
            for line in its_lines:
                marks[line["context_length"]].append(share_of_answers(line))
            detail[dataset] = {str(length): asdict(summarise(marks[length])) for length in sorted(marks)}
        result = {
            dataset: {length: score["score"] for length, score in scores.items()} for dataset, scores in detail.items()
        }
        return {RESULT_FILE: result, DETAIL_FILE: {"datasets": detail}}

    @override
    def columns(self, file: str, results: Mapping[str, Any]) -> dict[str, Score]:
        """By data set and length, such as "vt 4096"."""
        return {
            f"{dataset} {length}": detailed(score, results, "datasets", dataset, length)
            for dataset, scores in results.get(file, {}).items()
            for length, score in scores.items()
        }


def share_of_answers(line: Line) -> float:
    """How many of the answers occur in the prediction, upper and lower case alike, over how many there are."""
    said = str(line["pred"]).lower()
    return sum(str(answer).lower() in said for answer in line["answers"]) / len(line["answers"])


def _known(dataset: str) -> DatasetName:
    if dataset not in DATASETS:
        raise UserError(f"{dataset!r} is no data set of ruler ({', '.join(DATASETS)})")
    return dataset


TASK = Ruler()
