"""The effective window: how far a model's own positions can be used, measured within the window it was trained on.

GALI spreads keys over all distances below its window, so the window should end where the model no longer handles
distances. Two things are measured with the stock model, on inputs of at most W tokens, at the eight distances W/8 … W:

answers   prompts of W tokens with a pass key that lies so far before the question; all else, haystack and key, is the
          same at every distance. The answer's negative log-likelihood, teacher-forced: one pass for each prompt.
losses    the mean next-token loss of the same W/16 tokens of a text with so many tokens read, themselves included.

The rule: a distance fails where answers are worse than near ones, those up to W/4, by more than ln 2 (half the
likelihood), or losses worse than with some shorter context by more than 0.01 nats, either by more than two standard
errors over prompts or texts. The window is the last distance before the first that fails, at least W/4; where none
fails it is W. So what cannot be told from noise changes nothing. The local window is half of the window, and every
token is a chunk of its own (`DPI.automatic`).
"""

from __future__ import annotations

import logging
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, takewhile
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tqdm import tqdm

from models.DPI import calibration_cache
from models.DPI.losses import token_losses
from models.DPI.methods.dpi import DPI
from models.DPI.patches.Llama import installed_method
from models.passkey import GARBAGE, PASSKEY_LINE, PASSKEY_QUESTION, TASK_DESCRIPTION

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

STEPS = 8
"""Distances that are measured, evenly spaced up to W."""
NEAR = 2
"""The first of them, which the others are compared with: the window is at least W/4."""
ANSWER_TOLERANCE = math.log(2)
LOSS_TOLERANCE = 0.01
ERRORS = 2.0
"""Standard errors that a difference must exceed."""
TRIALS, TRIALS_ON_CPU = 16, 8
MOST_TRIALS = 1000
_KEYS = 10_000, 99_999
CHANCE = 5 * math.log(10)
"""The negative log-likelihood of a key whose five digits are guessed."""
_SCORED = 16  # of a window, the share of tokens whose losses are measured
_CHARACTERS = 16  # of a text are read for a token that is needed; hardly any tokenizer needs more

Row = Annotated[tuple[Annotated[float, Field(ge=0.0)], ...], Field(min_length=STEPS, max_length=STEPS)]


class Measurement(BaseModel):
    """What was measured, in nats. window: W, in tokens.

    distances: of the question from the key, and lengths of context, in tokens, ascending to W.
    answers: a row for each prompt, of the answer's negative log-likelihood at each distance.
    losses: a row for each piece of text, of the mean loss at each length of context; none where texts are too short.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    window: int = Field(ge=1)
    distances: Annotated[tuple[int, ...], Field(min_length=STEPS, max_length=STEPS, strict=False)]
    answers: Annotated[tuple[Row, ...], Field(min_length=2, max_length=MOST_TRIALS, strict=False)]
    losses: Annotated[tuple[Row, ...], Field(max_length=MOST_TRIALS, strict=False)] = ()

    @model_validator(mode="after")
    def _distances_of_the_window(self) -> Self:
        if list(self.distances) != distances_of(self.window):
            raise ValueError(f"distances = {list(self.distances)} are not those of window = {self.window}")
        return self


class Calibration(BaseModel):
    """GALI's parameters for a model. window: W' <= W, local_window, chunk_coe: as `DPI` takes them, in tokens.

    reason: in words, why the window is what it is. evidence: None where nothing could be measured.
    """

    model_config = ConfigDict(frozen=True)

    window: int
    local_window: int
    chunk_coe: int
    reason: str
    evidence: Measurement | None = None


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    window: int,
    *,
    texts: Sequence[str] | None = None,
    trials: int | None = None,
    cached: bool = True,
) -> Calibration:
    """The effective window of a stock model. See above for what is measured and by which rule it is read.

    window: W in tokens, what the model was trained on; no input is longer.
    texts: haystacks of half of the prompts, the others being landmark attention's repeated sentence, and what losses
        are measured on; Python's own help if None. They are begun anew where they are shorter than W.
    trials: prompts for each distance; 16 if None, 8 on a CPU.
    cached: keep the measurement in the user's cache folder, under a hash of the model and all prompts, and use one that
        is there.

    Raises ValueError if the model has a method, an argument is out of its bounds, or the model's logits are not finite.
    """
    if (method := installed_method(model)) is not None:
        raise ValueError(f"the model has the method {method.name!r}; uninstall it first: the stock model is measured")
    if type(window) is not int or window < 1:
        raise ValueError(f"window = {window!r} must be a number of tokens, 1 or more")
    if trials is None:
        trials = TRIALS_ON_CPU if model.device.type == "cpu" else TRIALS
    if not 2 <= trials <= MOST_TRIALS:
        raise ValueError(f"trials = {trials} must be between 2 and {MOST_TRIALS}")
    texts = [_help_of_python()] if texts is None else list(texts)
    if not any(text.strip() for text in texts):
        raise ValueError("texts are empty; give some, or None for Python's own help")
    prompts = make_prompts(tokenizer, window, texts, trials)
    if not prompts:
        return _calibration(window, f"{window} tokens are too few to hide a pass key in eight places")
    pieces = text_pieces(tokenizer, window, texts, trials // 2)
    key = calibration_cache.key_of(model, (window, [(prompt.ids, prompt.answer) for prompt in prompts], pieces))
    measurement = calibration_cache.read(key, Measurement) if cached and key is not None else None
    if measurement is None or measurement.window != window:
        measurement = _measure(model, window, prompts, pieces)
        if cached and key is not None:
            calibration_cache.write(key, measurement)
    return judge(measurement)


def judge(measurement: Measurement) -> Calibration:
    """What the rule makes of a measurement."""
    window, distances = measurement.window, measurement.distances
    near = [statistics.fmean(row[:NEAR]) for row in measurement.answers]
    if statistics.fmean(near) >= CHANCE:
        reason = f"near keys are not found either ({statistics.fmean(near):.2f} nats, a guess has {CHANCE:.2f})"
        return _calibration(window, f"the measurement cannot tell: {reason}", measurement)
    for step in range(NEAR, STEPS):
        worse = [row[step] - reference for row, reference in zip(measurement.answers, near, strict=True)]
        said = None
        if _exceeds(worse, ANSWER_TOLERANCE):
            said = f"answers are {statistics.fmean(worse):.2f} nats worse at {distances[step]} tokens than near"
        elif (excess := _loss_excess(measurement.losses, step)) is not None:
            said = f"losses are {excess:.3f} nats worse with {distances[step]} tokens than with fewer"
        if said:
            return _calibration(distances[step - 1], said, measurement)
    return _calibration(window, "no distance within the window is measurably worse than near ones", measurement)


def _loss_excess(losses: Sequence[Sequence[float]], step: int) -> float | None:
    """How much worse losses are than with the best shorter context, None where that cannot be told."""
    if len(losses) < 2:
        return None
    best = min(range(step), key=lambda shorter: statistics.fmean(row[shorter] for row in losses))
    worse = [row[step] - row[best] for row in losses]
    return statistics.fmean(worse) if _exceeds(worse, LOSS_TOLERANCE) else None


def _exceeds(differences: Sequence[float], tolerance: float) -> bool:
    """Whether the mean is above the tolerance, and above 0 by so many standard errors."""
    mean = statistics.fmean(differences)
    return mean > tolerance and mean > ERRORS * statistics.stdev(differences) / math.sqrt(len(differences))


def _calibration(window: int, reason: str, evidence: Measurement | None = None) -> Calibration:
    return Calibration(window=window, reason=reason, evidence=evidence, **DPI.automatic(window))


def distances_of(window: int) -> list[int]:
    """Those that are measured, in tokens, the last one W."""
    return [window * step // STEPS for step in range(1, STEPS + 1)]


@dataclass(frozen=True)
class Prompt:
    """A prompt and its answer, W tokens together, with the key at one distance. answer: how many tokens are its."""

    ids: list[int]
    answer: int


def make_prompts(
    tokenizer: PreTrainedTokenizerBase, window: int, texts: Sequence[str], trials: int
) -> list[Prompt]:
    """`STEPS` prompts for each trial, the nearest key first; none where the window is too short for them.

    The distance is that of the answer's first token from the first of the key's line; where the prompt begins before
    it, as at W, the line lies right behind the introduction.
    """

    def ids_of(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    start, introduction = _start(tokenizer), ids_of(f"{TASK_DESCRIPTION}\n")
    haystacks = [ids_of(f" {GARBAGE}"), *(ids_of(_beginning(text, window, trials)) for text in texts)]
    haystacks = [ids for ids in haystacks if ids]
    question = ids_of(f"\n{PASSKEY_QUESTION}")
    prompts = []
    for trial in range(trials):
        secret = str(random.Random(f"passkey {trial}").randint(*_KEYS))
        asked = ids_of(f"\n{PASSKEY_QUESTION} {secret}")
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(question, asked, strict=False)))
        line = ids_of(f"\n{PASSKEY_LINE.format(key=secret)}\n")
        room = window - len(start) - len(introduction) - len(line) - len(asked)
        if room < 0 or distances_of(window)[0] < len(line) + known:
            return []
        # The repeated sentence and the texts by turns; each text's turns begin at another place of it.
        which = 0 if trial % 2 == 0 else 1 + (trial // 2) % (len(haystacks) - 1) if len(haystacks) > 1 else 0
        hay = haystacks[which]
        offset = 0 if which == 0 else len(hay) * trial // trials
        body = list(islice(cycle(hay), offset, offset + room))
        for distance in distances_of(window):
            after = min(distance - len(line) - known, room)
            before = room - after
            prompts.append(
                Prompt([*start, *introduction, *body[:before], *line, *body[before:], *asked], len(asked) - known)
            )
    return prompts


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that the tokenizer begins a text with, if any."""
    first = list(tokenizer("a")["input_ids"])[:1]
    return first if first == [tokenizer.bos_token_id] else []


def _beginning(text: str, window: int, trials: int) -> str:
    """As much of a text as prompts can need: a long one is not tokenised whole."""
    return text[: _CHARACTERS * window * max(1, trials // 2)]


def text_pieces(
    tokenizer: PreTrainedTokenizerBase, window: int, texts: Sequence[str], count: int
) -> list[list[list[int]]]:
    """At most `count` pieces of text, from the texts by turns, none overlapping another: each at `STEPS` lengths.

    All lengths end alike, and begin with the tokenizer's start token.
    """
    start = _start(tokenizer)
    size = window - len(start)
    by_text = []
    for text in texts:
        beginning = _beginning(text, window, 2 * count)
        ids = list(tokenizer(beginning, add_special_tokens=False, verbose=False)["input_ids"])
        by_text.append([ids[first : first + size] for first in range(0, len(ids) - size + 1, size)])
    turns = (pieces[turn] for turn in range(max(map(len, by_text))) for pieces in by_text if turn < len(pieces))
    lengths = [distance - len(start) for distance in distances_of(window)]
    return [[[*start, *piece[-length:]] for length in lengths] for piece in islice(turns, count)]


def _help_of_python() -> str:
    """A text that is on every machine."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


@torch.no_grad()
def _measure(
    model: PreTrainedModel, window: int, prompts: Sequence[Prompt], pieces: Sequence[Sequence[list[int]]]
) -> Measurement:
    """One pass for each prompt, and for each piece and length of context."""
    passes = len(prompts) + len(pieces) * STEPS
    logger.info("measuring the window: %d passes of at most %d tokens through the stock model", passes, window)
    training = model.training
    model.eval()
    try:
        with tqdm(total=passes, desc="window", unit="pass", disable=None, leave=False) as bar:
            answers = list(_counted(bar, (_answer_nll(model, prompt) for prompt in prompts)))
            losses = [list(_counted(bar, _losses(model, window, piece))) for piece in pieces]
    finally:
        model.train(training)
    if not all(math.isfinite(value) for value in (*answers, *(value for row in losses for value in row))):
        raise ValueError(
            f"the model's logits are not finite within its own window of {window} tokens, which cannot be measured; "
            "give the window in tokens, or load the model in another dtype"
        )
    rows: list[Any] = [tuple(answers[first : first + STEPS]) for first in range(0, len(answers), STEPS)]
    return Measurement(
        window=window,
        distances=tuple(distances_of(window)),
        answers=tuple(rows),
        losses=tuple(tuple(row) for row in losses),
    )


def _counted(bar: tqdm[Any], values: Iterator[float]) -> Iterator[float]:
    for value in values:
        bar.update()
        yield value


def _answer_nll(model: PreTrainedModel, prompt: Prompt) -> float:
    ids = torch.tensor([prompt.ids], device=model.device)
    logits = model(ids, use_cache=False, logits_to_keep=prompt.answer + 1).logits[0, :-1].float()
    expected = ids[0, -prompt.answer :, None].to(logits.device)
    return -float(logits.log_softmax(-1).gather(-1, expected).double().sum())


def _losses(model: PreTrainedModel, window: int, piece: Sequence[list[int]]) -> Iterator[float]:
    scored = max(1, window // _SCORED)
    for ids in piece:
        losses = token_losses(model, torch.tensor([ids], device=model.device), first_token=len(ids) - scored)
        yield float(losses.double().mean())
