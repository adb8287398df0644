"""Needle in a haystack: 16 depths × lengths × trials, and passkey retrieval at random depths.

`needle` hides a line at each of 16 depths (1/16 … 16/16 of the haystack; `depths` says how many) of prompts of exactly
`min_k`, `min_k + gap`, … up to `max_k` thousand tokens, or of `lengths`, `times` times each with another key.
`passkey_retrieval` hides a pass key at a random place in `n_garbage` characters, `times` times. The score is 1 where
the answer occurs in the prediction, else 0.

Source: ChunkLlama's needle test, which the paper runs (section 4); prompts in `tasks/needle_prompts.py`.
"""

from __future__ import annotations

import functools
import logging
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import ExperimentConfig
from tasks import needle_prompts as prompts
from tasks.base import Engine, Line, Record, Task
from tasks.chat import chat_ids
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 48
"""Room for the longer of the two answers and some words before it, where the configuration does not say."""


class NeedleTask(Task):
    name = "needle"
    folder = "needle/pred"

    def datasets(self, cfg: ExperimentConfig) -> list[str]:
        return ["needle"]

    def records(self, cfg: ExperimentConfig, dataset: str) -> Iterable[Record]:
        for length in prompt_lengths(cfg):
            for depth in prompts.depths(cfg.depths):
                for trial in range(cfg.times):
                    identity = f"{length}-{100 * depth:g}-{trial}"
                    needle = _needle(cfg, f"{cfg.seed}/{identity}")
                    yield {
                        "id": identity,
                        "context_length": length,
                        "depth_percent": 100 * depth,
                        "answer": needle.answer,
                        "needle": needle,
                    }

    def prompt(
        self, cfg: ExperimentConfig, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        essays = _essays(cfg.data_dir) if cfg.haystack == "essays" and cfg.data_dir is not None else None
        tokenise = functools.partial(chat_ids, tokenizer, mode=cfg.chat, system_prompt=cfg.system_prompt)
        depth = record["depth_percent"] / 100
        return prompts.fit_prompt(record["context_length"], depth, record["needle"], essays, tokenise)

    def predict(self, engine: Engine, dataset: str, record: Record) -> Line:
        ids = self.prompt(engine.cfg, dataset, record, engine.tokenizer)
        generation = engine.generate(ids, engine.cfg.max_new_tokens or MAX_NEW_TOKENS)
        kept = ("context_length", "depth_percent", "answer")
        return {
            **{key: record[key] for key in kept if key in record},
            "pred": generation.text,
            "prefill_len": generation.prompt_tokens,
            "final_len": generation.total_tokens,
        }

    def score(self, cfg: ExperimentConfig | None, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        """`result.json`: `{context_length, depth_percent, score}`, the mean score of each cell."""
        cells: dict[tuple[int, float], list[float]] = defaultdict(list)
        for line in lines.get("needle", ()):
            cells[line["context_length"], line["depth_percent"]].append(contains(line))
        result = [
            {"context_length": length, "depth_percent": depth, "score": _mean(scores)}
            for (length, depth), scores in sorted(cells.items())
        ]
        lengths: dict[int, list[float]] = defaultdict(list)
        for (length, _), scores in sorted(cells.items()):
            lengths[length] += scores
        detail = {
            "by_length": {str(length): _summary(scores) for length, scores in lengths.items()},
            "overall": _summary([score for scores in cells.values() for score in scores]),
        }
        return {"result.json": result, "result_detail.json": detail}


class PasskeyRetrieval(NeedleTask):
    """Landmark attention's passkey test: a pass key in 1 … 50,000 at a random place in `n_garbage` characters."""

    name = "passkey_retrieval"

    def datasets(self, cfg: ExperimentConfig) -> list[str]:
        return ["passkey_retrieval"]

    def records(self, cfg: ExperimentConfig, dataset: str) -> Iterable[Record]:
        assert cfg.n_garbage is not None
        for trial in range(cfg.times):
            draw = random.Random(f"{cfg.seed}/passkey/{trial}")
            before = draw.randint(0, cfg.n_garbage)
            key = str(draw.randint(1, 50_000))
            yield {
                "id": str(trial),
                "depth_percent": 100 * before / cfg.n_garbage,
                "answer": key,
                "needle": prompts.passkey_needle(key),
            }

    def prompt(
        self, cfg: ExperimentConfig, dataset: str, record: Record, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        assert cfg.n_garbage is not None
        text = prompts.passkey_prompt(cfg.n_garbage, record["depth_percent"] / 100, record["needle"])
        return chat_ids(tokenizer, text, mode=cfg.chat, system_prompt=cfg.system_prompt)

    def score(self, cfg: ExperimentConfig | None, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
        summary = _summary([contains(line) for line in lines.get("passkey_retrieval", ())])
        return {"result.json": {"accuracy": summary["score"]}, "result_detail.json": summary}


def prompt_lengths(cfg: ExperimentConfig) -> list[int]:
    """Prompt lengths in tokens. Raises `UserError` if the longest is beyond `max_pe`.

    Without `max_k` the longest is what fits `max_pe` together with its answer.
    """
    room = cfg.max_pe - (cfg.max_new_tokens or MAX_NEW_TOKENS)
    if cfg.lengths:
        lengths = sorted({round(1000 * length) for length in cfg.lengths})
    else:
        longest = room / 1000 if cfg.max_k is None else cfg.max_k
        steps = math.floor((longest - cfg.min_k) / cfg.gap + 1e-9)  # 1.2 - 0.2 is not 10 times 0.1
        lengths = [round(1000 * (cfg.min_k + step * cfg.gap)) for step in range(steps + 1)]
    if not lengths or lengths[-1] > cfg.max_pe:
        most = lengths[-1] if lengths else round(1000 * cfg.min_k)
        raise UserError(
            f"a needle prompt of {most} tokens is beyond max_pe = {cfg.max_pe}; lower max_k (or min_k, lengths), or"
            " raise max_pe"
        )
    if lengths[-1] > room:
        logger.warning("prompts of %d tokens and their answers go beyond max_pe = %d", lengths[-1], cfg.max_pe)
    return lengths


def contains(line: Line) -> float:
    """1 if the answer occurs in the prediction, upper and lower case alike, else 0."""
    return float(str(line["answer"]).casefold() in str(line["pred"]).casefold())


def _needle(cfg: ExperimentConfig, seed: str) -> prompts.Needle:
    kind = cfg.needle
    if kind == "auto":
        kind = "passkey" if cfg.haystack == "passkey" else "sandwich"
    return prompts.sandwich_needle() if kind == "sandwich" else prompts.passkey_needle(prompts.draw_passkey(seed))


@functools.cache
def _essays(folder: Path) -> str:
    return prompts.read_essays(folder)


def _mean(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores)


def _summary(scores: Sequence[float]) -> dict[str, Any]:
    """Mean and its standard error (of a proportion) over the trials."""
    if not scores:
        return {"score": None, "standard_error": None, "trials": 0}
    mean = _mean(scores)
    return {"score": mean, "standard_error": math.sqrt(mean * (1 - mean) / len(scores)), "trials": len(scores)}


TASK = NeedleTask()
PASSKEY_RETRIEVAL = PasskeyRetrieval()
