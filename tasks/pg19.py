"""PG19: perplexity of long books at 1,024-token steps.

Definition. A text is tokenised with its special tokens and cut to `max_pe` tokens. One forward pass of the whole cut
text gives the negative log-likelihood ℓ_t of every token t = 1 … n − 1 given all tokens before it; the first token has
no context and is not scored, every other exactly once. `stride` only says for how many tokens logits exist at a time:
it bounds memory and changes no number, for any method.

The perplexity at length L (1024, 2048, …, multiples of `step`, up to `max_pe`) is that of the first L tokens: exp of
the mean of ℓ_1 … ℓ_{L−1}, over the texts that have at least L tokens. `result.json` holds the token-weighted mean: one
mean over all scored tokens of all texts. `result_detail.json` also holds the paper's number, the mean over texts of
each text's perplexity, with its standard error.

Methods whose scale depends on the number of tokens (Dyn-NTK, ChunkLlama) see the whole text's number throughout.

Source: Rae et al. 2019, "Compressive Transformers for Long-Range Sequence Modelling"; the paper, section 4.1.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.config import ExperimentConfig
from tasks.base import Engine, Line, Record, Task
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

STEP = 1024
DATASET = "pg19"
# The hub's original is a loading script, which `datasets` no longer runs; this mirror has the test split's 100 books
# alone, without the 11 GB of the training split.
HUB_REPOSITORY = "emozilla/pg19-test"
HUB_SPLIT = "test"


class PG19(Task):
    name = "pg19"
    folder = "pg19/pred"

    def datasets(self, cfg: ExperimentConfig) -> list[str]:
        return [DATASET]

    def records(self, cfg: ExperimentConfig, dataset: str) -> Iterable[Record]:
        """Texts of `data_dir` (`*.txt`, sorted by name; the id is the file's stem), or of the hub's test split."""
        if cfg.data_dir is None:
            yield from _hub_records()
            return
        files = sorted(cfg.data_dir.glob("*.txt")) if cfg.data_dir.is_dir() else []
        if not files:
            raise UserError(f"data_dir {str(cfg.data_dir)!r} has no *.txt files")
        for file in files:
            yield {"id": file.stem, "path": file}

    def prompt(
        self, cfg: ExperimentConfig, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        text = record["text"] if "text" in record else record["path"].read_text(encoding="utf-8", errors="replace")
        return list(tokenizer(text)["input_ids"])[: cfg.max_pe]

    def predict(self, engine: Engine, dataset: str, record: Record) -> Line:
        ids = self.prompt(engine.cfg, dataset, record, engine.tokenizer)
        if len(ids) < 2:
            raise ValueError("the text has fewer than two tokens; nothing can be scored")
        sums = cumulative_losses(engine.token_losses(ids).double().tolist(), engine.cfg.step)
        return {"prefill_len": len(ids), "final_len": len(ids), **sums}

    def score(self, cfg: ExperimentConfig | None, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        return score_lines(lines.get(DATASET, ()), STEP if cfg is None else cfg.step)


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
        books = [_exp(total / (length - 1)) for total in sums]
        result[str(length)] = _exp(math.fsum(sums) / (len(sums) * (length - 1)))
        steps[str(length)] = {
            "perplexity": result[str(length)],
            "mean_of_books": statistics.fmean(books),
            "standard_error_of_books": statistics.stdev(books) / math.sqrt(len(books)) if len(books) > 1 else None,
            "books": len(books),
            "scored_tokens": len(sums) * (length - 1),
        }
    scored = sum(line["scored_tokens"] for line in lines)
    whole = _exp(math.fsum(line["loss_sum"] for line in lines) / scored) if scored else None
    if lines and not result:
        logger.warning("no text has %d tokens, so there is no perplexity at any step", step)
    detail = {"steps": steps, "whole_texts": {"perplexity": whole, "scored_tokens": scored, "books": len(lines)}}
    return {"result.json": result, "result_detail.json": detail}


def _exp(mean_loss: float) -> float:
    """exp, held below the largest float: JSON has no infinity."""
    return math.exp(min(mean_loss, 700.0))


def _hub_records() -> Iterable[Record]:
    from datasets import load_dataset

    try:
        books = load_dataset(HUB_REPOSITORY, split=HUB_SPLIT)
    except Exception as error:  # the hub's errors have no common class
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"cannot load {HUB_REPOSITORY!r} from the hub ({reason}); give data_dir, a folder of *.txt files"
        ) from None
    for number, book in enumerate(books):
        yield {"id": f"{number:03d} {book.get('short_book_title', '')}".strip(), "text": book["text"]}


TASK = PG19()
