"""PG19: perplexity of long books at 1,024-token steps.

Definition. A text is tokenised with its special tokens and cut to `max_pe` tokens. One forward pass of the whole cut
text gives the negative log-likelihood ℓ_t of every token t = 1 … n − 1 given all tokens before it; the first token has
no context and is not scored, every other exactly once. `stride` only says for how many tokens logits exist at a time:
it bounds memory and changes no number, for any method.

The perplexity at length L (1024, 2048, …, multiples of `step`, up to `max_pe`) is that of the first L tokens: exp of
the mean of ℓ_1 … ℓ_{L−1}, over the texts that have at least L tokens. `result.json` holds the token-weighted mean: one
mean over all scored tokens of all texts. `result_detail.json` also holds the paper's number, the mean over texts of
each text's perplexity. At one length all texts have as many tokens, so that the token-weighted number is exp of the
mean of the texts' mean losses; its standard error is that of this mean, times the perplexity (delta method), and its
interval exp of Student's interval of this mean.

Methods whose scale depends on the number of tokens (Dyn-NTK, ChunkLlama) see the whole text's number throughout.

Source: Rae et al. 2019, "Compressive Transformers for Long-Range Sequence Modelling"; the paper, section 4.1.
"""

from __future__ import annotations

import logging
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from models import hub
from tasks.base import Engine, Line, Record, Task
from tasks.errors import UserError
from tasks.jsonl import hub_source
from tasks.metrics.intervals import student
from tasks.options import Options, Positive
from tasks.reading import read_text
from tasks.results import DETAIL_FILE, RESULT_FILE, Experiment, Score, detailed

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

STEP = 1024
DATASET = "pg19"
# The hub's original is a loading script, which `datasets` no longer runs; this mirror has the test split's 100 books
# alone, without the 11 GB of the training split.
HUB_REPOSITORY = "emozilla/pg19-test"
HUB_SPLIT = "test"


class PG19Options(Options):
    """At which lengths perplexity is measured, and in which memory."""

    may_change: ClassVar[frozenset[str]] = frozenset({"stride"})

    stride: Positive = Field(2000, description="hidden states per logits slice; bounds memory, changes no result")
    step: Positive = Field(STEP, description="perplexity at every so many tokens")


class PG19(Task):
    """Perplexity of books. One record per book."""

    name: ClassVar[str] = "pg19"
    label: ClassVar[str] = "PG19"
    measure: ClassVar[str] = "perplexity"
    folder: ClassVar[str] = "pg19/pred"
    prefix: ClassVar[str] = "pg19"
    Options = PG19Options

    @override
    def datasets(self) -> list[str]:
        return [DATASET]

    @override
    def records(self, options: PG19Options, dataset: str) -> Iterable[Record]:
        """Texts of `data_dir` (`*.txt`, sorted by name; the id is the file's stem), or of the hub's test split."""
        folder = options.data_dir
        if folder is None:
            yield from _hub_records(options)
            return
        files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
        if not files:
            raise UserError(f"data_dir {str(folder)!r} has no *.txt files")
        for file in files:
            yield {"id": file.stem, "path": file}

    @override
    def data_source(self, options: PG19Options) -> dict[str, str] | None:
        return hub_source(HUB_REPOSITORY, options)

    @override
    def prompt(
        self, options: PG19Options, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        text = record["text"] if "text" in record else read_text(record["path"])
        return list(tokenizer(text)["input_ids"])[: options.max_pe]

    @override
    def predict(self, engine: Engine, options: PG19Options, dataset: str, record: Record) -> Line:
        ids = self.prompt(options, dataset, record, engine.tokenizer)
        if len(ids) < 2:
            raise ValueError("the text has fewer than two tokens; nothing can be scored")
        losses = engine.token_losses(ids, options.stride).double().tolist()
        sums = cumulative_losses(losses, options.step)
        return {"prefill_len": len(ids), "final_len": len(ids), **sums}

    @override
    def score(self, options: PG19Options, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        return score_lines(lines.get(DATASET, ()), options.step)

    @override
    def columns(self, file: str, results: Mapping[str, Any]) -> dict[str, Score]:
        """By length in tokens, the token-weighted perplexity."""
        values = sorted(results.get(file, {}).items(), key=lambda item: int(item[0]))
        return {length: detailed(value, results, "steps", length, "perplexity") for length, value in values}

    @override
    def average(self, scores: Mapping[str, Score]) -> Score | None:
        """None: every length has the shorter ones within it."""
        return None

    @override
    def draw(self, experiments: Sequence[Experiment]) -> Figure | None:
        from tasks.pictures.perplexity import draw_perplexity

        return draw_perplexity(experiments)


def cumulative_losses(losses: Sequence[float], step: int = STEP) -> dict[str, Any]:
    """Sums of the losses of tokens 1 … L − 1 at every multiple L of `step` that the text reaches, and of all of them.

    `losses[t − 1]` is the loss of token t, so a text of n tokens has n − 1 of them.
    """
    tokens = len(losses) + 1
    lengths = range(step, tokens + 1, step)
    return {
        "scored_tokens": len(losses),
        "loss_sum": math.fsum(losses),
        "loss_sums": {str(length): math.fsum(losses[: length - 1]) for length in lengths},
    }


def score_lines(lines: Sequence[Line], step: int = STEP) -> dict[str, Any]:
    """`result.json` and `result_detail.json` of PG19; see the module's docstring for the definition."""
    longest = max((len(line["loss_sums"]) for line in lines), default=0)
    result: dict[str, float] = {}
    steps: dict[str, Any] = {}
    for length in range(step, step * longest + 1, step):
        sums = [line["loss_sums"][str(length)] for line in lines if str(length) in line["loss_sums"]]
        means = [total / (length - 1) for total in sums]  # the books' mean losses
        books = [_exp(mean) for mean in means]
        perplexity = result[str(length)] = _exp(math.fsum(sums) / (len(sums) * (length - 1)))
        steps[str(length)] = {
            "perplexity": asdict(_exp_of_mean(perplexity, means)),
            "mean_of_books": asdict(_mean_of_books(books)),
            "scored_tokens": len(sums) * (length - 1),
        }
    scored = sum(line["scored_tokens"] for line in lines)
    whole = _exp(math.fsum(line["loss_sum"] for line in lines) / scored) if scored else None
    if lines and not result:
        logger.warning("no text has %d tokens, so there is no perplexity at any step", step)
    whole_texts = {"perplexity": asdict(Score(whole, None, len(lines))), "scored_tokens": scored}
    return {RESULT_FILE: result, DETAIL_FILE: {"steps": steps, "whole_texts": whole_texts}}


def _exp_of_mean(perplexity: float, means: Sequence[float]) -> Score:
    """The token-weighted perplexity of books with these mean losses: exp of Student's interval of their mean.

    No loss is below 0.
    """
    spread = _standard_error(means)
    if spread is None:
        return Score(perplexity, None, len(means))
    low, high = student(statistics.fmean(means), spread, len(means))
    stderr = min(perplexity * spread, sys.float_info.max)  # JSON has no infinity
    return Score(perplexity, stderr, len(means), (_exp(max(0.0, low)), _exp(high)))


def _mean_of_books(books: Sequence[float]) -> Score:
    """Student's interval, held above the least perplexity there is, 1."""
    mean, spread = statistics.fmean(books), _standard_error(books)
    if spread is None:
        return Score(mean, None, len(books))
    low, high = student(mean, spread, len(books))
    return Score(mean, spread, len(books), (max(1.0, low), high))


def _standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _exp(mean_loss: float) -> float:
    """exp, held below the largest float: JSON has no infinity."""
    return math.exp(min(mean_loss, 700.0))


def _hub_records(options: PG19Options) -> Iterable[Record]:
    from datasets import load_dataset

    source = hub_source(HUB_REPOSITORY, options)
    assert source is not None
    try:
        folder = hub.folder_of_dataset(HUB_REPOSITORY, source["revision"])
        books = load_dataset(str(folder), split=HUB_SPLIT)
    except Exception as error:  # those of `datasets` have no common class
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(
            f"cannot load {HUB_REPOSITORY!r} from the hub ({reason}); give data_dir, a folder of *.txt files"
        ) from None
    for number, book in enumerate(books):
        yield {"id": f"{number:03d} {book.get('short_book_title', '')}".strip(), "text": book["text"]}


TASK = PG19()
