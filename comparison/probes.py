"""What settings are measured on: texts for the loss, passkeys in two haystacks, RULER's six tasks, one timed pass.

Everything is built once for all settings, every prompt as token ids with its answer, of an exact number of tokens.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

from tqdm import tqdm

from comparison.request import Request
from comparison.scoring import Continuation, Encode, continuation
from comparison.texts import Text
from pipeline.distributed import cores
from tasks import needle_prompts, ruler_prompts
from tasks.chat import chat_ids
from tasks.errors import UserError
from tasks.ruler_prompts import DatasetName, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Probe = Literal["loss", "passkey", "passkey_text", "ruler", "speed"]
RETRIEVAL: tuple[Probe, ...] = ("passkey", "passkey_text", "ruler")
"""The groups whose means make the retrieval score, with equal weights."""


@dataclass(frozen=True)
class Item:
    """One thing to measure of every setting.

    ids: tokens, prompt and reference. answer: how many of them at the end are the reference; spans: its answers.
    length: in tokens, as asked for. depth: the share of the haystack before the needle. chooses: whether it belongs to
    the half that settings are chosen on, else to the one that is reported.
    """

    id: str
    probe: Probe
    dataset: str
    length: int
    depth: float | None
    chooses: bool
    ids: tuple[int, ...]
    answer: int = 0
    spans: tuple[tuple[int, int], ...] = ()


def build_items(request: Request, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> list[Item]:
    """All items of a comparison. Prompts that cannot be as short as asked are named and left out.

    Raises `UserError` where one half of the texts would be empty.
    """
    long = [text for text in texts if text.ids is not None]
    if request.tune and len({number % 2 for number, text in enumerate(texts) if text.ids is not None}) < 2:
        raise UserError(
            f"--tune needs a text of {request.target} tokens in each half, texts with even and with odd numbers; there"
            f" are {len(long)}, of {len(texts)}"
        )
    items = [
        Item(
            f"loss {text.name}",
            "loss",
            text.name,
            request.target,
            None,
            request.tune and number % 2 == 0,
            tuple(text.ids),
        )
        for number, text in enumerate(texts)
        if text.ids is not None
    ]
    speed = Item("speed", "speed", "", request.target, None, False, items[0].ids)
    jobs = [*_passkeys(request, texts), *_ruler(request)]
    local = threading.local()

    def build(job: _Job) -> Item | str:
        if not hasattr(local, "tokenizer"):  # a fast tokenizer may not be used by two threads at once
            local.tokenizer = copy.deepcopy(tokenizer)
        try:
            return job(local.tokenizer)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(cores()) as pool:
        built = list(tqdm(pool.map(build, jobs), total=len(jobs), desc="building prompts", unit="prompt", leave=False))
    for reason in dict.fromkeys(one for one in built if isinstance(one, str)):
        logger.warning("left out: %s", reason)
    found = [*items, *(one for one in built if isinstance(one, Item)), speed]
    for chooses in {False, request.tune}:
        if not any(item.probe in RETRIEVAL and item.chooses == chooses for item in found):
            raise UserError(f"no prompt fits --lengths {' '.join(map(str, request.sizes.lengths))}; raise them")
    return found


_Job = Callable[["PreTrainedTokenizerBase"], Item]


def middles(count: int) -> list[float]:
    """Depths of needles: the middles of equal parts of the haystack."""
    return [(2 * number + 1) / (2 * count) for number in range(count)]


def _passkeys(request: Request, texts: Sequence[Text]) -> Iterator[_Job]:
    probes: tuple[Probe, ...] = ("passkey", "passkey_text")
    for probe in probes:
        cells = [(length, depth) for length in request.sizes.lengths for depth in middles(request.sizes.depths)]
        for number, (length, depth) in enumerate(cells):
            chooses = request.tune and number % 2 == 0
            haystack = haystack_of(number, texts, apart=request.tune) if probe == "passkey_text" else None
            yield _passkey_job(request.seed, probe, length, depth, haystack, chooses)


def haystack_of(number: int, texts: Sequence[Text], *, apart: bool) -> str:
    """Texts joined by blank lines, begun with another one for each number.

    apart: of even numbers texts with an even number alone, of odd ones the others: choosing and reporting share none.
    """
    own = list(texts[number % 2 :: 2]) if apart else list(texts)
    first = (number // 2 if apart else number) % len(own)
    return "\n\n".join(text.text.strip() for text in [*own[first:], *own[:first]])


def _passkey_job(seed: int, probe: Probe, length: int, depth: float, haystack: str | None, chooses: bool) -> _Job:
    def build(tokenizer: PreTrainedTokenizerBase) -> Item:
        name = f"{probe} {length} {100 * depth:.4g}%"
        needle = needle_prompts.passkey_needle(needle_prompts.draw_passkey(f"{seed}/{name}"))

        def tokenise(text: str) -> list[int]:
            return list(tokenizer(text, verbose=False)["input_ids"])

        wanted = continuation(needle.question, [(f" {needle.answer}", True)], encoder(tokenizer))
        room = length - len(wanted.ids) + wanted.dropped
        prompt = needle_prompts.fit_prompt(room, depth, needle, haystack, tokenise)
        return _item(name, probe, probe, length, depth, chooses, prompt, wanted, tokenizer, needle.question)

    return build


def _ruler(request: Request) -> Iterator[_Job]:
    lengths, samples = request.sizes.lengths, request.sizes.samples
    places = dealt(samples, len(lengths), pairs=request.tune)
    for dataset in get_args(DatasetName):
        for number, place in enumerate(places):
            at_length = [n for n in range(samples) if places[n] == place]
            depth = middles(len(at_length))[at_length.index(number)]
            yield _ruler_job(request, dataset, number, lengths[place], depth)


def dealt(samples: int, places: int, *, pairs: bool) -> list[int]:
    """The place of each sample, evenly over the places, or over their middle ones where the samples are fewer.

    pairs: an even one, which chooses, and the odd one behind it, which reports, at the same place; one without another
    goes with the last two.
    """
    size = 2 if pairs else 1
    hands = samples // size
    return [(2 * min(number // size, hands - 1) + 1) * places // (2 * hands) for number in range(samples)]


def _ruler_job(request: Request, dataset: DatasetName, number: int, length: int, depth: float) -> _Job:
    def build(tokenizer: PreTrainedTokenizerBase) -> Item:
        seed = f"{request.seed}/{dataset}/{length}/{number}"

        def tokenise(sample: Sample) -> list[int]:
            return chat_ids(tokenizer, sample.message, answer_prefix=sample.answer_prefix)

        sample = ruler_prompts.shortest(dataset, seed, depth, length)
        before = sample.answer_prefix
        wanted = continuation(before, list(reference(dataset, sample.answers)), encoder(tokenizer))
        room = length - len(wanted.ids) + wanted.dropped
        prompt, fitted = ruler_prompts.fit(dataset, seed, depth, room, tokenise)
        if fitted.answers != sample.answers:
            raise RuntimeError(f"{dataset}: the answers of {seed!r} depend on the size of the haystack")
        name = f"ruler {dataset} {length} {number}"
        chooses = request.tune and number % 2 == 0
        return _item(name, "ruler", dataset, length, depth, chooses, prompt, wanted, tokenizer, before)

    return build


def reference(dataset: DatasetName, answers: Sequence[str]) -> Iterable[tuple[str, bool]]:
    """The answers as the model has to write them, in pieces: behind blanks, those of cwe in a numbered list.

    vt: in the order of the chain; fwe: by falling frequency; cwe: in the order in which they were drawn, though any is
    right, as a reference has one. Those are the orders of the prompts' worked examples.
    """
    for number, answer in enumerate(answers, 1):
        if dataset == "cwe":
            yield f" {number}.", False
        yield f" {answer}", True


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """The tokenizer without special tokens."""
    return lambda text: list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _item(
    name: str,
    probe: Probe,
    dataset: str,
    length: int,
    depth: float,
    chooses: bool,
    prompt: list[int],
    wanted: Continuation,
    tokenizer: PreTrainedTokenizerBase,
    before: str,
) -> Item:
    """The prompt with its reference. Raises `UserError` where a prompt does not end as `before` does."""
    tail = encoder(tokenizer)(before)[-2:]
    if prompt[-len(tail) :] != tail:
        raise UserError(
            f"{name}: the tokenizer writes the end of the prompt in another way than {before[-20:]!r} alone, so that"
            " the answer's tokens are not known"
        )
    ids = (*prompt[: len(prompt) - wanted.dropped], *wanted.ids)
    return Item(name, probe, dataset, length, depth, chooses, ids, len(wanted.ids), wanted.spans)


def batches(items: Sequence[Item], tokens: int) -> Iterator[list[Item]]:
    """Items of equal length together, at most so many tokens in a batch; a longer one, a loss or a timed pass alone."""
    alone = [item for item in items if item.probe in ("loss", "speed")]
    yield from ([item] for item in alone)
    rest = sorted((item for item in items if item.probe not in ("loss", "speed")), key=lambda item: len(item.ids))
    changes = [0, *(at + 1 for at, (a, b) in enumerate(pairwise(rest)) if len(a.ids) != len(b.ids)), len(rest)]
    for first, last in pairwise(changes):
        if first == last:
            continue
        rows = max(1, tokens // len(rest[first].ids))
        for start in range(first, last, rows):
            yield rest[start : min(start + rows, last)]
