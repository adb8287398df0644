"""RULER's prompts that need no download, generated anew, each of an exact number of tokens (arXiv 2404.06654).

Wording, sizes and numbers are RULER's (`tasks/data/ruler`). What differs from its generators: needles lie at a depth
that is asked for, where RULER draws it; words come from a list of this project, with compounds of two where a list of
common words is longer than that; the worked example of variable tracking has ten lines of noise, where RULER's has as
many as fit 500 tokens; and a prompt is filled to the very token with the beginning of one more piece of its haystack.

Everything here is a pure function of its arguments; the tokenizer is only asked to tokenise.
"""

from __future__ import annotations

import json
import math
import random
import string
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

from models.tokens import common_prefix
from tasks.errors import UserError

_DATA = Path(__file__).parent / "data" / "ruler"
_PROMPTS = json.loads((_DATA / "prompts.json").read_text(encoding="utf-8"))
_WORDS = json.loads((_DATA / "words.json").read_text(encoding="utf-8"))

DatasetName = Literal["niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe"]

_HOPS = 4
_NOISE_OF_EXAMPLE = 10
_COMMON = 10
_SHORT = 4096
"""Below so many tokens RULER repeats words less often."""
_CODED_LETTERS = 6


@dataclass(frozen=True)
class Sample:
    """A prompt in its parts: the user's message, the beginning of the answer, and what a right answer has."""

    message: str
    answer_prefix: str
    answers: tuple[str, ...]


Build = Callable[[int, int], Sample]
"""From the size of a haystack in pieces, and a number of further pieces at its end, to a prompt."""

Tokenise = Callable[[Sample], list[int]]


def tokens_to_generate(dataset: DatasetName) -> int:
    """The published number."""
    return int(_PROMPTS[_FAMILY[dataset]]["tokens_to_generate"])


def fit(dataset: DatasetName, seed: object, depth: float, length: int, tokenise: Tokenise) -> tuple[list[int], Sample]:
    """Token ids of a prompt of exactly `length` tokens, and its parts before it was filled to that length.

    seed: what is drawn depends on it alone. depth: the share of the haystack before the needle, in the needle tasks.
    Raises `UserError` if the shortest prompt of the data set is longer.
    """
    build = _builder(dataset, seed, depth, length)
    size, ids = _largest(lambda size: tokenise(build(size, 0)), length, dataset)
    return _filled(ids, length, lambda further: tokenise(build(size, further))), build(size, 0)


def shortest(dataset: DatasetName, seed: object, depth: float, length: int) -> Sample:
    """The prompt that `fit` would make of one piece of haystack, in its parts; its answers are those of any size."""
    return _builder(dataset, seed, depth, length)(1, 0)


def _largest(tokens_of: Callable[[int], list[int]], length: int, dataset: str) -> tuple[int, list[int]]:
    """A size whose prompt fits and whose next one does not, with the prompt's ids."""
    low, best = 1, tokens_of(1)
    if len(best) > length:
        raise UserError(f"a prompt of {dataset} has at least {len(best)} tokens; {length} are too few")
    high, over, step, bisect = None, 0, 8, False
    while high is None or high - low > 1:
        if high is None:
            size = low + step
        elif bisect:  # every other time, in case interpolation creeps
            size = (low + high) // 2
        else:
            size = min(low + 1 + (high - low) * (length - len(best)) // (over - len(best)), high - 1)
        ids = tokens_of(size)
        bisect = high is not None and not bisect
        if len(ids) > length:
            high, over = size, len(ids)
        else:
            per_piece = max(1, (len(ids) - len(best)) // (size - low))
            step = (length - len(ids)) // per_piece + 1
            low, best = size, ids
    return low, best


def _filled(ids: list[int], length: int, with_further: Callable[[int], list[int]]) -> list[int]:
    """Ids with the first tokens of further pieces where these would stand, up to the exact length."""
    missing, further = length - len(ids), 1
    if not missing:
        return ids
    longer = with_further(further)
    while len(longer) < length:
        further *= 2
        longer = with_further(further)
    # Before what follows the haystack in both, which begins with the end of a line.
    place = min(common_prefix(ids, longer), len(ids) - common_prefix(ids[::-1], longer[::-1]))
    return [*ids[:place], *longer[place : place + missing], *ids[place:]]


def _builder(dataset: DatasetName, seed: object, depth: float, length: int) -> Build:
    if dataset == "vt":
        return _variable_tracking(seed)
    if dataset == "cwe":
        return _common_words(seed, length)
    if dataset == "fwe":
        return _frequent_words(seed, length)
    return _needle(dataset, seed, depth)


_FAMILY = {
    "niah_single_1": "niah",
    "niah_multikey_2": "niah",
    "niah_multikey_3": "niah",
    "vt": "variable_tracking",
    "cwe": "common_words_extraction",
    "fwe": "freq_words_extraction",
}


def _sample(
    family: str, answers: tuple[str, ...], *, singular: bool = False, before: str = "", **fields: Any
) -> Sample:
    """RULER's wording with its fields filled in. singular: one value is asked for. before: of the message."""
    parts = []
    for part in ("template", "answer_prefix"):
        text = _PROMPTS[family][part]
        if singular:
            for many, one in (("Some", "A"), ("are all", "is"), ("are", "is")):
                text = text.replace(many, one)
        parts.append(text.format(**fields))
    return Sample(before + parts[0], parts[1], answers)


def _needle(dataset: DatasetName, seed: object, depth: float) -> Build:
    """One needle among noise (single_1) or among others like it (multikey_2, words and numbers; multikey_3, uuids)."""
    kind = "uuids" if dataset == "niah_multikey_3" else "numbers"
    draw = random.Random(f"{seed}/needle")
    key, value = _key(draw, kind), _value(draw, kind)
    needle = _PROMPTS["needle"].format(type_needle_v=kind, key=key, value=value)

    def build(size: int, further: int) -> Sample:
        pieces = list(islice(_haystack(dataset, seed, kind, key), size + further))
        pieces.insert(round(depth * size), needle)
        context = "\n".join(pieces)
        return _sample("niah", (value,), singular=True, type_needle_v=kind[:-1], context=context, query=key)

    return build


def _haystack(dataset: DatasetName, seed: object, kind: str, key: str) -> Iterator[str]:
    draw = random.Random(f"{seed}/haystack")
    while True:
        if dataset == "niah_single_1":
            yield _PROMPTS["haystack"]
            continue
        other = _key(draw, kind)
        if other != key:
            yield _PROMPTS["needle"].format(type_needle_v=kind, key=other, value=_value(draw, kind))


def _key(draw: random.Random, kind: str) -> str:
    if kind == "uuids":
        return _uuid(draw)
    return f"{draw.choice(_WORDS['adjectives'])}-{draw.choice(_WORDS['nouns'])}"


def _value(draw: random.Random, kind: str) -> str:
    return _uuid(draw) if kind == "uuids" else str(draw.randint(1_000_000, 9_999_999))


def _uuid(draw: random.Random) -> str:
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))


def _variable_tracking(seed: object) -> Build:
    """A chain of assignments, scattered in their order among noise, behind a worked example."""
    draw = random.Random(f"{seed}/example")
    names, value = _names(draw, 3), str(draw.randint(10_000, 99_999))
    context = _with_chain([_PROMPTS["haystack"]] * _NOISE_OF_EXAMPLE, names, value, draw)
    worked = _tracking(context, names, value)
    example = f"{worked.message}{worked.answer_prefix} {' '.join(names)}\n\n"

    def build(size: int, further: int) -> Sample:
        draw = random.Random(f"{seed}/chain")
        names, value = _names(draw, 5), str(draw.randint(10_000, 99_999))
        lines = _with_chain([_PROMPTS["haystack"]] * max(size, _HOPS + 1), names, value, draw)
        return _tracking([*lines, *[_PROMPTS["haystack"]] * further], names, value, example)

    return build


def _tracking(lines: list[str], names: tuple[str, ...], value: str, before: str = "") -> Sample:
    context = "\n".join(lines)
    return _sample("variable_tracking", names, before=before, context=context, query=value, num_v=len(names))


def _names(draw: random.Random, letters: int) -> tuple[str, ...]:
    """Different names of the variables of one chain."""
    found: dict[str, None] = {}
    while len(found) <= _HOPS:
        found["".join(draw.choices(string.ascii_uppercase, k=letters))] = None
    return tuple(found)


def _with_chain(noise: list[str], names: tuple[str, ...], value: str, draw: random.Random) -> list[str]:
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {new} = VAR {old} " for old, new in pairwise(names)]
    places = sorted(draw.sample(range(len(noise)), len(chain)))
    lines = list(noise)
    for already, (place, assignment) in enumerate(zip(places, chain, strict=True)):
        lines.insert(place + already, assignment)
    return lines


def _common_words(seed: object, length: int) -> Build:
    """A numbered list in which ten words are repeated more often than the others, behind a worked example."""
    short = length < _SHORT
    draw = random.Random(f"{seed}/example")
    words = _vocabulary(draw, 20 if short else 40)
    listed = _listed(words, (3, 1) if short else (10, 3), draw)
    worked = _sample("common_words_extraction", (), context=_numbered(listed))
    example = f"{worked.message}{worked.answer_prefix} {_numbered(words[:_COMMON])}\n"

    def build(size: int, further: int) -> Sample:
        draw = random.Random(f"{seed}/list")
        words = _vocabulary(draw, _COMMON + size + further)
        used, left = words[: _COMMON + size], words[_COMMON + size :]
        listed = _listed(used, (6, 1) if short else (30, 3), draw) + left
        answers = tuple(words[:_COMMON])
        return _sample("common_words_extraction", answers, before=example, context=_numbered(listed))

    return build


def _listed(words: list[str], repeats: tuple[int, int], draw: random.Random) -> list[str]:
    listed = words[:_COMMON] * repeats[0] + words[_COMMON:] * repeats[1]
    draw.shuffle(listed)
    return listed


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def _vocabulary(draw: random.Random, count: int) -> list[str]:
    """Different words in an order of their own; the first of a longer list are those of a shorter one."""
    simple = sorted({word for kind in ("adjectives", "nouns", "verbs") for word in _WORDS[kind]})
    draw.shuffle(simple)
    found = dict.fromkeys(simple[:count])
    while len(found) < count:
        found[draw.choice(_WORDS["adjectives"]) + draw.choice(_WORDS["nouns"])] = None
    return list(found)


def _frequent_words(seed: object, length: int) -> Build:
    """Coded words whose counts fall with the square of their rank; the first rank is dots, which do not count."""
    draw = random.Random(f"{seed}/words")
    words: dict[str, None] = {"...": None}
    while len(words) < max(length // 50, 5):
        words["".join(draw.choices(string.ascii_lowercase, k=_CODED_LETTERS))] = None
    vocabulary = list(words)
    total = math.pi**2 / 6  # the sum of 1 / rank²

    def build(size: int, further: int) -> Sample:
        listed = [word for rank, word in enumerate(vocabulary, 1) for _ in range(int(size / rank**2 / total))]
        random.Random(f"{seed}/order").shuffle(listed)
        context = " ".join(listed + ["..."] * further)
        return _sample("freq_words_extraction", tuple(vocabulary[1:4]), context=context)

    return build
