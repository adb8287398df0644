"""The effective window: how far a model's own positions can be used, measured within the window it was trained on.

GALI spreads keys over all distances below its window, so the window should end where the model no longer handles them.
Two things are measured with the stock model, on inputs of W/8, 2W/8 … W tokens, as in an input of n tokens all
distances below n occur and no others:

answers   prompts with a pass key, at the same share of the haystack in every length. The answer's negative
          log-likelihood, teacher-forced: one pass for each prompt.
losses    the mean next-token loss of the same W/16 tokens of a text, at the end of inputs of each length.

The rule: a length fails where answers are worse than in the short ones, up to W/4, by more than ln 2 (half the
likelihood), or losses worse than in the best shorter one by more than 0.01 nats, either by more than two standard
errors over prompts or pieces of text. The window is the last length before the first that fails, at least W/4; where
none fails it is W. So what cannot be told from noise changes nothing. The local window is half of the window, and every
token is a chunk of its own (`DPI.automatic`).

What is found depends on the text: for SmolLM2-135M (W = 8,192) Python's help says 3,072 tokens; essays, meetings,
contracts and books say 6,144.
"""

from __future__ import annotations

import logging
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tqdm import tqdm

from models.DPI import calibration_cache
from models.DPI.losses import token_losses
from models.DPI.methods.dpi import DPI
from models.DPI.patches.Llama import installed_method
from models.passkey import GARBAGE, PASSKEY_LINE, PASSKEY_QUESTION, TASK_DESCRIPTION
from models.tokens import common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

STEPS = 8
"""Lengths of inputs, evenly spaced up to W."""
SHORT = 2
"""The steps that the others are compared with, as far as a prompt fits: the window is at least W/4."""
ANSWER_TOLERANCE = math.log(2)
LOSS_TOLERANCE = 0.01
ERRORS = 2.0
"""Standard errors that a difference must exceed."""
TRIALS, TRIALS_ON_CPU = 64, 8
MOST_TRIALS = 1000
_KEYS = 10_000, 99_999
CHANCE = 5 * math.log(10)
"""The negative log-likelihood of a key whose five digits are guessed."""
_SCORED = 16  # of a window, the share of tokens whose losses are measured
_CHARACTERS = 16  # of a text are read for a token that is needed; hardly any tokenizer needs more

Row = Annotated[tuple[Annotated[float, Field(ge=0.0)], ...], Field(strict=False)]


class Measurement(BaseModel):
    """What was measured, in nats. window: W, in tokens.

    lengths: of the inputs, in tokens, ascending to W; W/4 and, where it holds a prompt, W/8 are the short ones.
    answers: a row for each prompt, of the answer's negative log-likelihood at each length.
    losses: a row for each piece of text, of the mean loss at each length; none where texts are too short.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    window: int = Field(ge=1)
    lengths: Annotated[tuple[int, ...], Field(strict=False)]
    answers: Annotated[tuple[Row, ...], Field(min_length=2, max_length=MOST_TRIALS, strict=False)]
    losses: Annotated[tuple[Row, ...], Field(max_length=MOST_TRIALS, strict=False)] = ()

    @model_validator(mode="after")
    def _a_column_for_each_length(self) -> Self:
        known = lengths_of(self.window)
        if list(self.lengths) not in (known[skipped:] for skipped in range(SHORT)):
            raise ValueError(f"lengths = {list(self.lengths)} are not those of window = {self.window}")
        if any(len(row) != len(self.lengths) for row in (*self.answers, *self.losses)):
            raise ValueError(f"answers and losses must have {len(self.lengths)} columns, one for each length")
        return self

    @property
    def short(self) -> int:
        """How many of the lengths are the short ones."""
        return len(self.lengths) - (STEPS - SHORT)


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
    trials: prompts of each length; 64 if None, 8 on a CPU. Of 16 the standard error hides the tolerance (0.8 nats at
        4,096 tokens of SmolLM2-135M).
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
    lengths, prompts = make_prompts(tokenizer, window, texts, trials)
    if not prompts:
        return _calibration(window, f"a quarter of {window} tokens is too short for a prompt with a pass key")
    pieces = text_pieces(tokenizer, window, texts, trials // 2, lengths)
    key = calibration_cache.key_of(model, (window, [[(one.ids, one.answer) for one in row] for row in prompts], pieces))
    measurement = calibration_cache.read(key, Measurement) if cached and key is not None else None
    if measurement is None or measurement.window != window:
        measurement = _measure(model, window, lengths, prompts, pieces)
        if cached and key is not None:
            calibration_cache.write(key, measurement)
    return judge(measurement)


def judge(measurement: Measurement) -> Calibration:
    """What the rule makes of a measurement."""
    window, lengths, short = measurement.window, measurement.lengths, measurement.short
    references = [statistics.fmean(row[:short]) for row in measurement.answers]
    if (mean := statistics.fmean(references)) >= CHANCE:
        reason = f"keys in short prompts are not found either ({mean:.2f} nats, a guess has {CHANCE:.2f})"
        return _calibration(window, f"the measurement cannot tell: {reason}", measurement)
    for step in range(short, len(lengths)):
        worse = [row[step] - reference for row, reference in zip(measurement.answers, references, strict=True)]
        said = None
        if _exceeds(worse, ANSWER_TOLERANCE):
            said = (
                f"answers are {statistics.fmean(worse):.2f} nats worse in {lengths[step]} tokens than in short prompts"
            )
        elif (excess := _loss_excess(measurement.losses, step)) is not None:
            said = f"losses are {excess:.3f} nats worse in {lengths[step]} tokens than in fewer"
        if said:
            return _calibration(lengths[step - 1], said, measurement)
    return _calibration(window, "no length within the window is measurably worse than shorter ones", measurement)


def _loss_excess(losses: Sequence[Sequence[float]], step: int) -> float | None:
    """How much worse losses are than in the best shorter input, None where that cannot be told."""
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


def lengths_of(window: int) -> list[int]:
    """Those that inputs are measured at, in tokens, the last one W."""
    return [window * step // STEPS for step in range(1, STEPS + 1)]


@dataclass(frozen=True)
class Prompt:
    """A prompt with its answer behind it. answer: how many tokens are the answer's."""

    ids: list[int]
    answer: int


def make_prompts(
    tokenizer: PreTrainedTokenizerBase, window: int, texts: Sequence[str], trials: int
) -> tuple[list[int], list[list[Prompt]]]:
    """Lengths in tokens, answers included, and for each trial a prompt of each; none where W/4 tokens hold none.

    Trials take the repeated sentence and the texts by turns, either with keys at all depths.
    """

    def ids_of(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    before = [*_start(tokenizer), *ids_of(f"{TASK_DESCRIPTION}\n")]
    sentence, *read = (ids_of(text) for text in (f" {GARBAGE}", *(_beginning(text, window, trials) for text in texts)))
    read = [ids for ids in read if ids]
    question = ids_of(f"\n{PASSKEY_QUESTION}")
    found: list[list[Prompt]] = []
    lengths = lengths_of(window)
    for trial in range(trials):
        secret = str(random.Random(f"passkey {trial}").randint(*_KEYS))
        line, asked = ids_of(f"\n{PASSKEY_LINE.format(key=secret)}\n"), ids_of(f"\n{PASSKEY_QUESTION} {secret}")
        known = common_prefix(question, asked)
        lengths = [length for length in lengths if length >= len(before) + len(line) + len(asked)]
        hay, offset = sentence, 0
        if trial % 2 and read:
            hay = read[trial // 2 % len(read)]
            offset = len(hay) * trial // trials
        depth = (trial // 2 + 0.5) / ((trials + 1) // 2)
        row = []
        for length in lengths:
            body = list(islice(cycle(hay), offset, offset + length - len(before) - len(line) - len(asked)))
            place = int(depth * len(body))
            ids = [*before, *body[:place], *line, *body[place:], *asked]
            row.append(Prompt(ids, len(asked) - known))
        found.append(row)
    if len(lengths) <= STEPS - SHORT:
        return [], []
    return lengths, [row[-len(lengths) :] for row in found]


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that the tokenizer begins a text with, if any."""
    first = list(tokenizer("a")["input_ids"])[:1]
    return first if first == [tokenizer.bos_token_id] else []


def _beginning(text: str, window: int, trials: int) -> str:
    """As much of a text as prompts can need: a long one is not tokenised whole."""
    return text[: _CHARACTERS * window * max(1, trials // 2)]


def text_pieces(
    tokenizer: PreTrainedTokenizerBase, window: int, texts: Sequence[str], count: int, lengths: Sequence[int]
) -> list[list[list[int]]]:
    """At most `count` pieces of text, from the texts by turns, none overlapping another: each at all lengths.

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
    return [[[*start, *piece[len(start) - length :]] for length in lengths] for piece in islice(turns, count)]


def _help_of_python() -> str:
    """A text that is on every machine."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


@torch.no_grad()
def _measure(
    model: PreTrainedModel,
    window: int,
    lengths: Sequence[int],
    prompts: Sequence[Sequence[Prompt]],
    pieces: Sequence[Sequence[list[int]]],
) -> Measurement:
    """One pass for each prompt, and for each piece of text at each length."""
    passes = (len(prompts) + len(pieces)) * len(lengths)
    logger.info("measuring the window: %d passes of at most %d tokens through the stock model", passes, window)
    training = model.training
    model.eval()
    try:
        with tqdm(total=passes, desc="window", unit="pass", disable=None, leave=False) as bar:
            answers = [tuple(_counted(bar, (_answer_nll(model, one) for one in row))) for row in prompts]
            scored = max(1, window // _SCORED)
            losses = [tuple(_counted(bar, (_loss(model, ids, scored) for ids in piece))) for piece in pieces]
    finally:
        model.train(training)
    if not all(math.isfinite(value) for row in (*answers, *losses) for value in row):
        raise ValueError(
            f"the model's logits are not finite within its own window of {window} tokens, which cannot be measured; "
            "give the window in tokens, or load the model in another dtype"
        )
    return Measurement(window=window, lengths=tuple(lengths), answers=tuple(answers), losses=tuple(losses))


def _counted(bar: tqdm[Any], values: Iterator[float]) -> Iterator[float]:
    for value in values:
        bar.update()
        yield value


def _answer_nll(model: PreTrainedModel, prompt: Prompt) -> float:
    ids = torch.tensor([prompt.ids], device=model.device)
    logits = model(ids, use_cache=False, logits_to_keep=prompt.answer + 1).logits[0, :-1].float()
    expected = ids[0, -prompt.answer :, None].to(logits.device)
    return -float(logits.log_softmax(-1).gather(-1, expected).double().sum())


def _loss(model: PreTrainedModel, ids: Sequence[int], scored: int) -> float:
    losses = token_losses(model, torch.tensor([ids], device=model.device), first_token=len(ids) - scored)
    return float(losses.double().mean())
