"""What an experiment would do, without loading weights: records, prompt lengths, memory."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.config import ExperimentConfig
from pipeline.model_loader import read_model_config, read_tokenizer, resolve_dtype
from pipeline.runner import select_datasets, select_records
from pipeline.text import printable
from tasks import get_task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

T = TypeVar("T")

MOST_PROMPTS = 128
"""Prompts that are tokenised per data set; of larger ones, this many at even distances."""

GIB = 2**30
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class PromptCount:
    """A data set's record count, and the token lengths of the prompts that were tokenised."""

    name: str
    records: int
    prompt_tokens: list[int]


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device for a batch of one.

    weights; cache: keys and values of all layers; activations: the largest layer's intermediate values.
    """

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """Of all three."""
        return self.weights + self.cache + self.activations


def count_prompts(cfg: ExperimentConfig) -> list[PromptCount]:
    """Records and prompt lengths of every data set of an experiment."""
    task = get_task(cfg.task)
    chosen = {dataset: select_records(task, cfg, dataset) for dataset in select_datasets(task, cfg)}
    tokenizer = read_tokenizer(cfg.model, trust_remote_code=cfg.trust_remote_code)
    return [
        PromptCount(
            dataset,
            len(records),
            [len(task.prompt(cfg.options, dataset, record, tokenizer)) for record in sample(records)],
        )
        for dataset, records in chosen.items()
    ]


def sample(records: Sequence[T]) -> list[T]:
    """All records, or `MOST_PROMPTS` of them at even distances, the first and the last included."""
    if len(records) <= MOST_PROMPTS:
        return list(records)
    return [records[i * (len(records) - 1) // (MOST_PROMPTS - 1)] for i in range(MOST_PROMPTS)]


def estimate_memory(config: PreTrainedConfig, tokens: int, bytes_per_number: int) -> MemoryEstimate:
    """An estimate for one input of `tokens` tokens; attention itself is O(n) and small beside these."""
    from transformers import AutoModelForCausalLM

    from pipeline.engine import bytes_per_token

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    parameters = sum(p.numel() for p in model.parameters())
    cache, activations = bytes_per_token(config, bytes_per_number)
    return MemoryEstimate(parameters * bytes_per_number, cache * tokens, activations * tokens)


def quantiles(lengths: Sequence[int]) -> list[int]:
    """Minimum, quartiles and maximum."""
    if len(lengths) == 1:
        return [lengths[0]] * len(QUANTILES)
    inner = statistics.quantiles(lengths, n=4, method="inclusive")
    return [min(lengths), *(round(value) for value in inner), max(lengths)]


def show(cfg: ExperimentConfig, window: int, console: Console) -> None:
    """Print what one experiment would do. window: W in tokens."""
    counts = count_prompts(cfg)
    console.print(
        f"[bold]{escape(cfg.exp_name)}[/bold]: {cfg.task} with {escape(cfg.method)} on {escape(printable(cfg.model))}, "
        f"window {window:,}, target {cfg.options.max_pe:,} tokens",
        highlight=False,
    )
    table = Table("data set", "records", "min", "25 %", "median", "75 %", "max", "> window", "prompts counted")
    for count in counts:
        beyond = sum(length > window for length in count.prompt_tokens) / len(count.prompt_tokens)
        cells = [f"{value:,}" for value in quantiles(count.prompt_tokens)]
        table.add_row(count.name, f"{count.records:,}", *cells, f"{beyond:.0%}", f"{len(count.prompt_tokens):,}")
    console.print(table)
    longest = max(max(count.prompt_tokens) for count in counts)
    dtype = resolve_dtype(cfg)
    name = str(dtype).removeprefix("torch.")
    config = read_model_config(cfg.model, trust_remote_code=cfg.trust_remote_code)
    memory = estimate_memory(config, longest, dtype.itemsize)
    console.print(
        f"memory for {longest:,} tokens in {name}: about {memory.total / GIB:.2f} GiB (weights "
        f"{memory.weights / GIB:.2f}, keys and values {memory.cache / GIB:.2f}, "
        f"activations {memory.activations / GIB:.2f})",
        highlight=False,
    )
