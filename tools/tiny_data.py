"""Text, tokenizer and training batches for the embedded model (`tools/train_tiny.py`).

A corpus is a folder of plain-text files. Batches mix windows of it, begun at random offsets, with passkey prompts
in the wording and over the two haystacks of the needle task (`tasks/needle_prompts.py`); the corpus takes the place
of the essays. A batch is a pure function of (recipe, seed, step), whatever the number of worker processes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from tasks.needle_prompts import build_prompt, draw_passkey, fit_prompt, passkey_needle

BOS, EOS = "<s>", "</s>"
CHARACTERS_PER_TOKEN = 8
"""More than a window of English needs: how much text a haystack is given to be cut from."""


def read_texts(folder: Path) -> list[str]:
    """The texts of a folder (`*.txt`, sorted by name). Raises `ValueError` if there are none."""
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in sorted(folder.glob("*.txt"))]
    if not any(texts):
        raise ValueError(f"--data {str(folder)!r} has no text in *.txt files; give a folder of plain-text files")
    return texts


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` tokens that never joins digits and puts `<s>` before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


@dataclass(frozen=True)
class Corpus:
    """The training text twice: as one string for haystacks, and as one stream of tokens, `<s> text </s>` per file."""

    text: str
    tokens: Tensor  # (N,) int16 or int32

    @classmethod
    def encode(cls, texts: list[str], tokenizer: Tokenizer) -> Corpus:
        """Join the texts, and tokenise them one by one."""
        small = tokenizer.get_vocab_size() <= torch.iinfo(torch.int16).max
        end = tokenizer.token_to_id(EOS)
        rows = [torch.tensor([*encoding.ids, end]) for encoding in tokenizer.encode_batch(texts)]
        return cls("\n\n".join(texts), torch.cat(rows).to(torch.int16 if small else torch.int32))


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Item `step` is the batch of that step: tokens (B, window + 1) int64 and, for the targets `tokens[:, 1:]`, which
    of them answer a passkey question, (B, window) bool.

    The first `round(passkey_fraction * batch_size)` rows are passkey prompts with their answer, one per row: as long
    as the window allows in one half, of any length in the other, and there text lies before and after. The key stands
    at any depth. The other rows are windows of text; one half of them begins with `<s>`, the other in mid-text.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        steps: int,
        batch_size: int,
        window: int,
        passkey_fraction: float,
        seed: int,
    ) -> None:
        """Raise `ValueError` if the corpus is shorter than a window, or the window than a passkey prompt."""
        self.corpus, self.tokenizer = corpus, tokenizer
        self.steps, self.batch_size, self.window, self.seed = steps, batch_size, window, seed
        self.passkey_rows = round(passkey_fraction * batch_size)
        self.bos, self.eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
        if len(corpus.tokens) < window + 1:
            raise ValueError(
                f"--data has {len(corpus.tokens)} tokens; a --window of {window} needs {window + 1} or more"
            )
        # Six digits are the longest key, and the essays form is the longer wording.
        self.shortest = len(self._encode(build_prompt(0, 1.0, passkey_needle("500000"), "\n")))
        if self.passkey_rows and self.shortest + len(" 500000.") + 1 > window + 1:
            raise ValueError(
                f"--window {window} is too short for a passkey prompt of {self.shortest} tokens and its answer; "
                "widen it or give --passkey-fraction 0"
            )

    def __len__(self) -> int:
        """Steps."""
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step. Raises `IndexError` beyond the last."""
        if not 0 <= step < self.steps:
            raise IndexError(step)
        rng = random.Random(f"{self.seed}/{step}")
        tokens = torch.empty(self.batch_size, self.window + 1, dtype=torch.long)
        is_answer = torch.zeros(self.batch_size, self.window + 1, dtype=torch.bool)
        for row in range(self.batch_size):
            if row < self.passkey_rows:
                tokens[row], answer = self._passkey_row(rng)
                is_answer[row, answer] = True
            else:
                tokens[row] = self._text_row(rng)
        return tokens, is_answer[:, 1:]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def _crop(self, rng: random.Random, length: int) -> Tensor:
        start = rng.randint(0, len(self.corpus.tokens) - length)
        return self.corpus.tokens[start : start + length].long()

    def _text_row(self, rng: random.Random) -> Tensor:
        row = self._crop(rng, self.window + 1)
        if rng.random() < 0.5:
            row = torch.cat([torch.tensor([self.bos]), row[:-1]])
        return row

    def _passkey_row(self, rng: random.Random) -> tuple[Tensor, slice]:
        """A row with one prompt and its answer, and where in the row the answer lies, from its space to its `</s>`.

        The full stop makes the key's end something to copy from the needle. Without it `</s>` would mean
        that nothing is found to copy, and in a long prompt that is what a thinned-out attention looks like.
        """
        key = self._key(rng)
        answer = [*self.tokenizer.encode(f" {key}.", add_special_tokens=False).ids, self.eos]
        longest = self.window + 1 - len(answer)
        length = longest if rng.random() < 0.5 else rng.randint(self.shortest, longest)
        haystack = self._haystack(rng) if rng.random() < 0.5 else None
        prompt = fit_prompt(length, rng.random(), passkey_needle(key), haystack, self._encode)

        spare = longest - len(prompt)
        before = rng.randint(0, spare)
        parts = [self._crop(rng, before), torch.tensor(prompt + answer), self._crop(rng, spare - before)]
        start = before + len(prompt)
        return torch.cat(parts), slice(start, start + len(answer))

    @staticmethod
    def _key(rng: random.Random) -> str:
        """A key from the task's range, or in one case of four any number of at most six digits."""
        return draw_passkey(rng.random()) if rng.random() < 0.75 else draw_passkey(rng.random(), 1, 999_999)

    def _haystack(self, rng: random.Random) -> str:
        """Text from the beginning of some paragraph."""
        length = CHARACTERS_PER_TOKEN * self.window
        start = rng.randint(0, max(0, len(self.corpus.text) - length))
        paragraph = self.corpus.text.find("\n\n", start, start + length // 2)
        return self.corpus.text[max(start, paragraph) : start + length].lstrip()
