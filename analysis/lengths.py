"""How long the benchmarks' inputs are: tokens of each prompt, before anything is cut, per data set and tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from pipeline.config import ExperimentConfig, build_config
from tasks import get_task
from tasks.errors import UserError
from tasks.leval import build_prompt
from tasks.longbench import official_prompt

COLUMNS = ["task", "dataset", "tokenizer", "tokens"]


def input_lengths(
    task: str, folder: Path, tokenizers: Mapping[str, PreTrainedTokenizerBase], records: int
) -> tuple[pd.DataFrame, list[str]]:
    """Lengths of the prompts of a benchmark ("longbench" or "leval"), and the data sets that `folder` has not.

    folder: the benchmark's jsonl files. records: at most so many a data set; of L-Eval, documents with their first
    instruction. Returns a table with the columns task, dataset, tokenizer, tokens, one row a prompt and tokenizer.
    """
    content = {"model": "-", "exp_name": "lengths", "method": "repro_original", "task": task, "max_pe": 1}
    cfg = build_config({**content, "data_dir": folder}, "lengths")
    rows: list[tuple[str, str, str, int]] = []
    missing = []
    for dataset in tqdm(get_task(task).known_datasets(cfg), desc=task, unit="data set", leave=False):
        try:
            texts = list(islice(_prompts(cfg, dataset), records))
        except UserError:
            missing.append(dataset)
            continue
        for name, tokenizer in tokenizers.items():
            encoded = tokenizer(texts, verbose=False)["input_ids"] if texts else []
            rows += [(task, dataset, name, len(ids)) for ids in encoded]
    return pd.DataFrame(rows, columns=COLUMNS), missing


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of the same columns as one; empty ones add nothing."""
    return pd.concat([table for table in tables if len(table)] or list(tables)[:1], ignore_index=True)


def _prompts(cfg: ExperimentConfig, dataset: str) -> Iterator[str]:
    """The text of each record's prompt, without chat template."""
    for record in get_task(cfg.task).records(cfg, dataset):
        if cfg.task == "longbench":
            yield official_prompt(dataset, record)
        elif record["turn"] == 0:
            prompt = build_prompt(dataset, record["document"], record["instruction"], record["reference"])
            yield prompt.system + prompt.message + prompt.answer_prefix
