"""Needle prompts of an exact token length: two haystacks, two needles, in their published wording.

Wordings, word for word:
- passkey: the text of landmark attention (Mohtashami & Jaggi 2023, github.com/epfml/landmark-attention, Apache-2.0),
  as ChunkLlama (github.com/HKUNLP/ChunkLlama, Apache-2.0) and the paper run it.
- sandwich: the sentence, the question and the instruction of the needle-in-a-haystack test
  (github.com/gkamradt/LLMTest_NeedleInAHaystack, MIT), whose haystack is a folder of essays.

Everything here is a pure function of its arguments; the tokenizer is only asked to tokenise.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models import passkey
from tasks.errors import UserError
from tasks.reading import read_text

TASK_DESCRIPTION = passkey.TASK_DESCRIPTION
GARBAGE = passkey.GARBAGE
PASSKEY_LINE = passkey.PASSKEY_LINE
PASSKEY_QUESTION = passkey.PASSKEY_QUESTION

SANDWICH_LINE = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
SANDWICH_ANSWER = "eat a sandwich and sit in Dolores Park on a sunny day"
SANDWICH_QUESTION = "What is the best thing to do in San Francisco?"
SANDWICH_INTRODUCTION = (
    "You are a helpful AI bot that answers questions for a user. Keep your response short and direct"
)
SANDWICH_INSTRUCTION = "Don't give information outside the document or repeat your findings"


def depths(count: int = 16) -> tuple[float, ...]:
    """Depths of the needle, fractions of the haystack that come before it: 16 in ChunkLlama's and the paper's test."""
    return tuple(i / count for i in range(1, count + 1))


DOUBLINGS = 8
"""Of four characters a token, until a prompt must be too long: 512 are more than any tokenizer joins in one."""

Tokenise = Callable[[str], list[int]]


@dataclass(frozen=True)
class Needle:
    """What is hidden, and how it is asked for. `answer` must occur in the prediction."""

    introduction: str
    line: str
    question: str
    answer: str


def passkey_needle(key: str) -> Needle:
    """Landmark attention's line with a key, which is the answer."""
    return Needle(TASK_DESCRIPTION, PASSKEY_LINE.format(key=key), PASSKEY_QUESTION, key)


def sandwich_needle() -> Needle:
    """The needle-in-a-haystack test's sentence; the answer is its second half."""
    question = f"{SANDWICH_QUESTION} {SANDWICH_INSTRUCTION}"
    return Needle(SANDWICH_INTRODUCTION, SANDWICH_LINE, question, SANDWICH_ANSWER)


def draw_passkey(seed: object, low: int = 50_000, high: int = 500_000) -> str:
    """A pass key in [low, high], the range of ChunkLlama's needle test, that depends on `seed` alone."""
    return str(random.Random(str(seed)).randint(low, high))


def garbage_text(n_chars: int) -> str:
    """The first `n_chars` characters of the repeated garbage sentence."""
    period = len(GARBAGE) + 1
    return " ".join([GARBAGE] * (n_chars // period + 1))[:n_chars]


def read_essays(folder: Path) -> str:
    """The texts of a folder (`*.txt`, sorted by name), joined by blank lines. Raises `UserError` if there are none."""
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not files:
        raise UserError(f"data_dir {str(folder)!r} has no *.txt files; the essays haystack is a folder of them")
    return "\n\n".join(read_text(file).strip() for file in files)


def passkey_prompt(n_garbage: int, depth: float, needle: Needle) -> str:
    """The passkey text with `n_garbage` characters of garbage, the share `depth` of them before the needle.

    Garbage begins anew behind the needle and is cut at a character, as published.
    """
    before = int(depth * n_garbage)
    return "\n".join(
        (
            needle.introduction,
            garbage_text(before),
            needle.line,
            garbage_text(n_garbage - before),
            needle.question,
        )
    )


def essays_prompt(n_chars: int, depth: float, needle: Needle, essays: str) -> str:
    """The first `n_chars` characters of the essays (begun anew when they end) with the needle at `depth`.

    The needle moves back to the end of a sentence, as in the published test, and is a line of its own.
    """
    text = _repeat(essays, n_chars)
    cut = len(text) if depth >= 1 else _sentence_end(text, int(depth * n_chars))
    haystack = f"{text[:cut]}\n{needle.line}\n{text[cut:].lstrip()}"
    return f"{needle.introduction}\n\n{haystack}\n\n{needle.question}"


def build_prompt(n_chars: int, depth: float, needle: Needle, essays: str | None) -> str:
    """The prompt over the essays, or over the passkey garbage where `essays` is None."""
    if essays is None:
        return passkey_prompt(n_chars, depth, needle)
    return essays_prompt(n_chars, depth, needle, essays)


def fit_prompt(length: int, depth: float, needle: Needle, essays: str | None, tokenise: Tokenise) -> list[int]:
    """Token ids of the prompt whose length is `length` tokens, chat template and special tokens included.

    `tokenise` turns the whole text into what the model is fed. The number of haystack characters is searched by
    bisection; where no number gives the exact length (a character may cost two tokens), the longest prompt that
    is not longer is taken. Raises `UserError` if the wording alone is longer than `length`, and where the prompt stays
    short however long the haystack is, as under a chat template that leaves the message out.
    """
    shortest = tokenise(build_prompt(0, depth, needle, essays))
    if len(shortest) > length:
        raise UserError(f"a needle prompt of {length} tokens is impossible: its wording alone has {len(shortest)}")
    best, low, high = shortest, 0, 0
    guess = 4 * (length - len(shortest)) + 16
    for _ in range(DOUBLINGS):  # grow until the prompt is too long
        ids = tokenise(build_prompt(guess, depth, needle, essays))
        if len(ids) > length:
            high = guess
            break
        best, low, guess = ids, guess, guess * 2
    else:
        raise UserError(
            f"a needle prompt of {length} tokens is impossible: with {low:,} characters of haystack it has {len(best)};"
            " the model's chat template seems to leave text out (chat = 'none' goes without it)"
        )
    while len(best) < length and high - low > 1:
        # The density of tokens is nearly constant, so interpolation lands close; bisection guards the ends.
        share = (length - len(best)) / max(1, len(ids) - len(best))
        middle = min(max(low + 1, low + int(share * (high - low))), high - 1)
        trial = tokenise(build_prompt(middle, depth, needle, essays))
        if len(trial) <= length:
            best, low = trial, middle
        else:
            ids, high = trial, middle
    return best


def _repeat(text: str, n_chars: int) -> str:
    """The first `n_chars` characters of the text, begun anew behind a blank line when it ends."""
    unit = text + "\n\n"
    return (unit * (n_chars // len(unit) + 1))[:n_chars]


def _sentence_end(text: str, position: int) -> int:
    """The position behind the last full stop before `position`, or 0 if there is none."""
    return text.rfind(".", 0, position) + 1
