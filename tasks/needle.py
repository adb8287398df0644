"""Needle in a haystack: depths × lengths × trials.

A line is hidden at each of 16 depths (1/16 … 16/16 of the haystack; `depths` says how many) of prompts of exactly
`min_k`, `min_k + gap`, … up to `max_k` thousand tokens, or of `lengths`, `times` times each with another key. The
score is 1 where the answer occurs in the prediction, else 0.

Source: ChunkLlama's needle test, which the paper runs (section 4); prompts in `tasks/needle_prompts.py`.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator
from typing_extensions import override

from tasks import needle_prompts as prompts
from tasks.base import Dialogue, GenerationTask, Line, Record, Request
from tasks.chat import chat_ids
from tasks.errors import UserError
from tasks.metrics.summary import proportion
from tasks.options import MAX_COUNT, Options, Positive
from tasks.results import DETAIL_FILE, RESULT_FILE, Experiment, Score, detailed, mean_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 48
"""Room for the longer of the two answers and some words before it, where the configuration does not say."""

MOST_RECORDS = 100_000
"""Of one run: 16 depths of 300 lengths, 20 times each."""

Depths = Annotated[int, Field(gt=0, le=1000, strict=True)]
Thousands = Annotated[float, Field(ge=0.001, le=MAX_COUNT / 1000, allow_inf_nan=False)]


class NeedleOptions(Options):
    """Lengths, depths and trials, the haystack and what is hidden in it."""

    times: Positive = Field(20, description="trials")
    min_k: Thousands = Field(1, description="shortest prompt, thousands of tokens")
    max_k: Thousands | None = Field(None, description="longest prompt; without it what fits max_pe")
    gap: Thousands = Field(4, description="step between lengths")
    haystack: Literal["passkey", "essays"] = Field("passkey", description="garbage text, or essays in data_dir")
    needle: Literal["auto", "passkey", "sandwich"] = Field("auto", description="auto: the haystack's published one")
    lengths: tuple[Thousands, ...] = Field((), description="these lengths instead, thousands of tokens")
    depths: Depths = Field(16, description="places of the needle, evenly spread, the last at the end")

    @field_validator("min_k", "max_k", "gap", "lengths", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, bool | str):
                raise ValueError(f"must be a number, not {item!r}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_k is not None and self.max_k < self.min_k:
            raise ValueError(f"max_k = {self.max_k:g} is less than min_k = {self.min_k:g}")
        if self.haystack == "essays" and self.data_dir is None:
            raise ValueError("data_dir is missing; haystack = 'essays' needs a folder of *.txt files")
        return self


class HiddenAnswer(GenerationTask):
    """A benchmark that hides an answer and looks for it in the prediction: `needle` and `passkey_retrieval`."""

    folder: ClassVar[str] = "needle/pred"
    digits: ClassVar[int] = 3

    @override
    def datasets(self) -> list[str]:
        return [self.name]

    @override
    def most_new_tokens(self, options: Options, dataset: str) -> int:
        return options.max_new_tokens or MAX_NEW_TOKENS

    @override
    def dialogue(self, options: Options, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase) -> Dialogue:
        ids = self.prompt(options, dataset, record, tokenizer)
        generation = yield Request(ids, options.max_new_tokens or MAX_NEW_TOKENS)
        kept = ("context_length", "depth_percent", "answer")
        return {
            **{key: record[key] for key in kept if key in record},
            "pred": generation.text,
            "prefill_len": generation.prompt_tokens,
            "final_len": generation.total_tokens,
        }


class NeedleTask(HiddenAnswer):
    """Records are cells of depth and length, `times` each."""

    name: ClassVar[str] = "needle"
    label: ClassVar[str] = "Needle in a haystack"
    prefix: ClassVar[str] = "needle"
    Options = NeedleOptions

    @override
    def records(self, options: NeedleOptions, dataset: str) -> Iterable[Record]:
        lengths = prompt_lengths(options)
        if (count := len(lengths) * options.depths * options.times) > MOST_RECORDS:
            raise UserError(
                f"{len(lengths)} lengths x depths = {options.depths} x times = {options.times} are {count:,} records,"
                f" more than {MOST_RECORDS:,}; raise gap (or give fewer lengths), or lower depths or times"
            )
        for length in lengths:
            for depth in prompts.depths(options.depths):
                for trial in range(options.times):
                    identity = f"{length}-{100 * depth:g}-{trial}"
                    needle = _needle(options, f"{options.seed}/{identity}")
                    yield {
                        "id": identity,
                        "context_length": length,
                        "depth_percent": 100 * depth,
                        "answer": needle.answer,
                        "needle": needle,
                    }

    @override
    def prompt(
        self, options: NeedleOptions, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        essays = _essays(options.data_dir) if options.haystack == "essays" and options.data_dir is not None else None
        tokenise = functools.partial(chat_ids, tokenizer, mode=options.chat, system_prompt=options.system_prompt)
        depth = record["depth_percent"] / 100
        return prompts.fit_prompt(record["context_length"], depth, record["needle"], essays, tokenise)

    @override
    def score(self, options: NeedleOptions, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        """`result.json`: `{context_length, depth_percent, score}`, the mean score of each cell."""
        cells: dict[tuple[int, float], list[float]] = defaultdict(list)
        for line in lines.get(self.name, ()):
            cells[line["context_length"], line["depth_percent"]].append(contains(line))
        result = [
            {"context_length": length, "depth_percent": depth, "score": math.fsum(trials) / len(trials)}
            for (length, depth), trials in sorted(cells.items())
        ]
        lengths: dict[int, list[float]] = defaultdict(list)
        for (length, _), trials in sorted(cells.items()):
            lengths[length] += trials
        by_length = {str(length): proportion(trials) for length, trials in lengths.items()}
        average = mean_of(list(by_length.values())) or Score(None)
        overall = replace(average, count=sum(map(len, lengths.values())))  # of trials, not of lengths
        detail = {
            "by_length": {length: asdict(score) for length, score in by_length.items()},
            "overall": asdict(overall),
        }
        return {RESULT_FILE: result, DETAIL_FILE: detail}

    @override
    def columns(self, file: str, results: Mapping[str, Any]) -> dict[str, Score]:
        """By length in tokens, the mean over depths."""
        cells: dict[int, list[float]] = defaultdict(list)
        for cell in results.get(file, ()):
            length, depth = cell["context_length"], cell["depth_percent"]
            if not all(isinstance(value, int | float) for value in (length, depth)):
                raise TypeError(f"context_length = {length!r}, depth_percent = {depth!r} are not two numbers")
            cells[length].append(cell["score"])
        return {
            str(length): detailed(math.fsum(scores) / len(scores), results, "by_length", str(length))
            for length, scores in sorted(cells.items())
        }

    @override
    def draw(self, experiments: Sequence[Experiment]) -> Figure | None:
        from tasks.pictures.needle import draw_needles

        return draw_needles(experiments, self.digits)


def prompt_lengths(options: NeedleOptions) -> list[int]:
    """Prompt lengths in tokens. Raises `UserError` if the longest is beyond `max_pe`.

    Without `max_k` the longest is what fits `max_pe` together with its answer.
    """
    room = options.max_pe - (options.max_new_tokens or MAX_NEW_TOKENS)
    if options.lengths:
        lengths = sorted({round(1000 * length) for length in options.lengths})
    else:
        longest = room / 1000 if options.max_k is None else options.max_k
        steps = math.floor((longest - options.min_k) / options.gap + 1e-9)  # 1.2 - 0.2 is not 10 times 0.1
        if steps >= MOST_RECORDS:
            raise UserError(
                f"gap = {options.gap:g} makes {steps + 1:,} lengths from min_k = {options.min_k:g} to {longest:g}, more"
                f" than {MOST_RECORDS:,}; raise it"
            )
        # Each once: a step of one token may round to none.
        lengths = sorted({round(1000 * (options.min_k + step * options.gap)) for step in range(steps + 1)})
    if not lengths or lengths[-1] > options.max_pe:
        most = lengths[-1] if lengths else round(1000 * options.min_k)
        answer = "" if most > options.max_pe else f", with {options.max_pe - room} for its answer,"
        raise UserError(
            f"a needle prompt of {most} tokens{answer} is beyond max_pe = {options.max_pe}; lower max_k (or min_k,"
            " lengths), or raise max_pe"
        )
    if lengths[-1] > room:
        logger.warning("prompts of %d tokens and their answers go beyond max_pe = %d", lengths[-1], options.max_pe)
    return lengths


def contains(line: Line) -> float:
    """1 if the answer occurs in the prediction, upper and lower case alike, else 0."""
    return float(str(line["answer"]).casefold() in str(line["pred"]).casefold())


def _needle(options: NeedleOptions, seed: str) -> prompts.Needle:
    kind = options.needle
    if kind == "auto":
        kind = "passkey" if options.haystack == "passkey" else "sandwich"
    return prompts.sandwich_needle() if kind == "sandwich" else prompts.passkey_needle(prompts.draw_passkey(seed))


@functools.cache
def _essays(folder: Path) -> str:
    return prompts.read_essays(folder)


TASK = NeedleTask()
