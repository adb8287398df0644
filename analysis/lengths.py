"""How long the benchmarks' inputs are: tokens of each prompt, before anything is cut, per data set and tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from tasks import get_task
from tasks.base import Task
from tasks.errors import UserError
from tasks.options import Options
from tasks.pictures.style import DASHES, WINDOW_COLOUR, new_figure, tidy

COLUMNS = ["task", "dataset", "tokenizer", "tokens"]
# Tokenizers are no methods: pale colours that differ in lightness, none of them a method's.
FILLS = ("#8C9DA8", "#DDE4E8", "#B9A88F", "#EFE6D8")


def input_lengths(
    task_name: str, folder: Path, tokenizers: Mapping[str, PreTrainedTokenizerBase], records: int
) -> tuple[pd.DataFrame, list[str]]:
    """Lengths of the prompts of a benchmark, and the data sets that `folder` has not.

    folder: the benchmark's files. records: at most so many per data set; of a document with several instructions, the
    first. Returns a table with the columns task, dataset, tokenizer, tokens: one row per prompt and tokenizer.
    """
    task = get_task(task_name)
    options = task.Options.model_validate({"max_pe": 1, "data_dir": folder})
    rows: list[tuple[str, str, str, int]] = []
    missing = []
    for dataset in tqdm(task.known_datasets(), desc=task_name, unit="data set", leave=False):
        try:
            texts = list(islice(_whole_texts(task, options, dataset), records))
        except UserError:
            missing.append(dataset)
            continue
        for name, tokenizer in tokenizers.items():
            encoded = tokenizer(texts, verbose=False)["input_ids"] if texts else []
            rows += [(task_name, dataset, name, len(ids)) for ids in encoded]
    return pd.DataFrame(rows, columns=COLUMNS), missing


def _whole_texts(task: Task, options: Options, dataset: str) -> Iterator[str]:
    for record in task.records(options, dataset):
        text = task.whole_text(dataset, record)
        if text is not None:
            yield text


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of the same columns as one; empty ones add nothing."""
    return pd.concat([table for table in tables if len(table)] or list(tables)[:1], ignore_index=True)


def draw(lengths: pd.DataFrame, windows: Sequence[int]) -> Figure:
    """A panel per benchmark, a row per data set, a box per tokenizer: quartiles, 5 % to 95 %, on a logarithmic scale.

    windows: lengths in tokens to mark with lines.
    """
    tables = {str(task): table for task, table in lengths.groupby("task", sort=False)}
    tokenizers = list(dict.fromkeys(lengths["tokenizer"]))
    rows = max(table["dataset"].nunique() for table in tables.values())
    figure = new_figure(1 + 5.2 * len(tables), 1.2 + 0.3 * rows)
    axes = figure.subplots(1, len(tables), squeeze=False, sharex=True)
    for axis, (task, table) in zip(axes.flat, tables.items(), strict=True):
        boxes = _boxes(axis, table, tokenizers)
        axis.set_title(get_task(task).label, fontsize=10, pad=14)
        for window in windows:
            axis.axvline(window, color=WINDOW_COLOUR, linewidth=0.9, linestyle=DASHES, zorder=1)
            axis.annotate(f"{window / 1024:g}k", (window, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
                          textcoords="offset points", fontsize=7, color=WINDOW_COLOUR, ha="center")  # fmt: skip
    labels = [f"tokenizer of {name}" for name in tokenizers]
    axes.flat[-1].legend(
        boxes[::-1], labels[::-1], fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(1.0, 0.0)
    )
    return figure


def _boxes(axis: Axes, table: pd.DataFrame, tokenizers: Sequence[str]) -> list[PathPatch]:
    """The boxes of one benchmark, the longest data set on top. Returns one box per tokenizer."""
    by_length = table.groupby("dataset")["tokens"].median().sort_values()
    datasets = [str(name) for name in by_length.index]
    height = 0.8 / len(tokenizers)
    handles = []
    for nth, tokenizer in enumerate(tokenizers):
        chosen = table[table["tokenizer"] == tokenizer]
        groups = [chosen.loc[chosen["dataset"] == name, "tokens"].to_numpy() for name in datasets]
        boxes = axis.boxplot(
            groups, orientation="horizontal", widths=0.85 * height, whis=(5, 95), showfliers=False,
            positions=np.arange(len(groups)) + (nth - (len(tokenizers) - 1) / 2) * height, patch_artist=True,
            boxprops={"facecolor": FILLS[nth % len(FILLS)], "edgecolor": "#333333", "linewidth": 0.7},
            medianprops={"color": "black", "linewidth": 1.3}, whiskerprops={"linewidth": 0.8},
            capprops={"linewidth": 0.8},
        )  # fmt: skip
        handles.append(boxes["boxes"][0])
    counts = table.groupby("dataset")["tokens"].size() // len(tokenizers)
    axis.set_yticks(range(len(datasets)), [f"{name} ({counts[name]})" for name in datasets], fontsize=8)
    axis.set_ylim(-0.7, len(datasets) - 0.3)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens / 1000:g}"))
    axis.set_xlabel("length of a prompt, thousand tokens")
    tidy(axis, "x")
    return handles
