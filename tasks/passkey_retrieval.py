"""Landmark attention's passkey test: a pass key in 1 … 50,000 at a random place in `n_garbage` characters.

`times` trials, each with another key and place. The score is 1 where the key occurs in the prediction, else 0.

Source: Mohtashami & Jaggi 2023; its text is in `tasks/needle_prompts.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator
from typing_extensions import override

from tasks import needle_prompts as prompts
from tasks.base import Line, Record
from tasks.chat import chat_ids
from tasks.metrics.summary import proportion
from tasks.needle import MOST_RECORDS, HiddenAnswer, contains
from tasks.options import Options, Positive
from tasks.results import DETAIL_FILE, RESULT_FILE, Score, detailed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PasskeyOptions(Options):
    """Trials, and how much text hides the key."""

    times: Annotated[Positive, Field(le=MOST_RECORDS)] = Field(20, description="trials")
    n_garbage: Positive | None = Field(None, description="characters of garbage")

    @model_validator(mode="after")
    def _has_garbage(self) -> Self:
        if self.n_garbage is None:
            raise ValueError("n_garbage is missing; passkey_retrieval needs it (characters of garbage, such as 60000)")
        return self


class PasskeyRetrieval(HiddenAnswer):
    """Records are trials."""

    name: ClassVar[str] = "passkey_retrieval"
    label: ClassVar[str] = "Passkey retrieval"
    prefix: ClassVar[str] = "passkey"
    Options = PasskeyOptions

    @override
    def records(self, options: PasskeyOptions, dataset: str) -> Iterable[Record]:
        assert options.n_garbage is not None
        for trial in range(options.times):
            draw = random.Random(f"{options.seed}/passkey/{trial}")
            before = draw.randint(0, options.n_garbage)
            key = str(draw.randint(1, 50_000))
            yield {
                "id": str(trial),
                "depth_percent": 100 * before / options.n_garbage,
                "answer": key,
                "needle": prompts.passkey_needle(key),
            }

    @override
    def prompt(
        self, options: PasskeyOptions, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        assert options.n_garbage is not None
        text = prompts.passkey_prompt(options.n_garbage, record["depth_percent"] / 100, record["needle"])
        return chat_ids(tokenizer, text, mode=options.chat, system_prompt=options.system_prompt)

    @override
    def score(self, options: PasskeyOptions, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        accuracy = proportion([contains(line) for line in lines.get(self.name, ())])
        return {RESULT_FILE: {"accuracy": accuracy.score}, DETAIL_FILE: {"accuracy": asdict(accuracy)}}

    @override
    def columns(self, file: str, results: Mapping[str, Any]) -> dict[str, Score]:
        return {name: detailed(value, results, name) for name, value in results.get(file, {}).items()}

    @override
    def average(self, scores: Mapping[str, Score]) -> Score | None:
        """None: there is one score."""
        return None


TASK = PasskeyRetrieval()
