"""A byte tokenizer, chat templates and an engine that answers from a script, for tests of benchmarks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tasks import get_task
from tasks.base import Generation
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

    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int,
        *,
        stop_token_ids: Sequence[int] = (),
        min_new_tokens: int = 0,
    ) -> Generation:
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        text = str(self.tokenizer.decode(ids))
        self.calls.append(Call(ids, text, max_new_tokens, tuple(stop_token_ids), min_new_tokens))
        answer = self.answer(text)
        return Generation(answer, len(ids), len(self.tokenizer(answer)["input_ids"]) - 1)

    def token_losses(self, input_ids: Sequence[int], slice_tokens: int) -> Tensor:
        raise NotImplementedError


def options(task: str, **keys: object) -> Options:
    """The validated options of a benchmark, with a target of 4096 tokens where `keys` have no other."""
    return get_task(task).Options.model_validate({"max_pe": 4096, **keys})
