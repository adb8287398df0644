"""A byte tokenizer, chat templates, an engine that answers from a script, and intervals of scores made another way."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tasks import get_task
from tasks.base import Generation, Request
from tasks.options import Options

LLAMA2_TEMPLATE = "{# [INST] <<SYS>> #}"
PLAIN_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8, after a start token, so that token counts can be done by hand."""
    vocabulary = {"<s>": 0, **{letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", clean_up_tokenization_spaces=False)
    fast.chat_template = chat_template
    return fast


@dataclass
class Call:
    """What an engine was asked: the prompt's token ids, and their text with special tokens."""

    ids: list[int]
    prompt: str
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    min_new_tokens: int


@dataclass
class FakeEngine:
    """`answer` maps the text of a prompt, special tokens included, to the continuation."""

    tokenizer: PreTrainedTokenizerBase
    answer: Callable[[str], str]
    calls: list[Call] = field(default_factory=list)

    def generate(self, requests: Sequence[Request]) -> list[Generation | FloatingPointError]:
        return [self._generate(request) for request in requests]

    def _generate(self, request: Request) -> Generation:
        ids = list(request.prompt)
        text = str(self.tokenizer.decode(ids))
        self.calls.append(Call(ids, text, *request.ending))
        answer = self.answer(text)
        return Generation(answer, len(ids), len(self.tokenizer(answer)["input_ids"]) - 1)

    def batch_tokens(self) -> int | None:
        return None

    def generation_settings(self) -> dict[str, Any]:
        return {}

    def token_losses(self, input_ids: Sequence[int], slice_tokens: int) -> Tensor:
        raise NotImplementedError


def options(task: str, **keys: object) -> Options:
    """The validated options of a benchmark, with a target of 4096 tokens where `keys` have no other."""
    return get_task(task).Options.model_validate({"max_pe": 4096, **keys})


def inverted_score_test(mean: float, trials: float) -> tuple[float, float]:
    """95 % interval of a proportion, in [0, 1]: every p whose score test, (mean − p)² n / p(1 − p), does not reject."""

    def outermost(end: float) -> float:
        kept, rejected = mean, end
        for _ in range(80):
            p = (kept + rejected) / 2
            if (mean - p) ** 2 * trials <= 1.959964**2 * p * (1 - p):
                kept = p
            else:
                rejected = p
        return kept

    return outermost(0.0), outermost(1.0)


def interval_of_marks(marks: Sequence[float], unit: float = 100) -> Any:
    """As result files have it, of marks in [0, 1]: by the trials that vary as much as the marks.

    A quarter of a 0 and of a 1 are among the marks: all others count four times.
    """
    more = [*marks, *marks, *marks, *marks, 0.0, 1.0]
    middle = statistics.fmean(more)
    trials = len(marks) * middle * (1 - middle) / statistics.pvariance(more)
    ends = inverted_score_test(statistics.fmean(marks), trials)
    return pytest.approx(tuple(unit * end for end in ends), abs=unit * 2e-6)
