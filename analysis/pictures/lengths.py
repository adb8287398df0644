"""Lengths of the benchmarks' inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.pictures.style import tidy
from pipeline.figures import WINDOW_COLOUR

# Tokenizers are no methods: pale colours that differ in lightness, none of them a method's.
FILLS = ("#8C9DA8", "#DDE4E8", "#B9A88F", "#EFE6D8")


def draw(lengths: pd.DataFrame, windows: Sequence[int]) -> Figure:
    """A panel a benchmark, a row a data set, a box a tokenizer: quartiles, 5 % to 95 %, on a logarithmic scale.

    windows: lengths in tokens to mark with lines.
    """
    tasks = list(dict.fromkeys(lengths["task"]))
    tokenizers = list(dict.fromkeys(lengths["tokenizer"]))
    datasets = {task: _by_median(lengths[lengths["task"] == task]) for task in tasks}
    rows = max(len(names) for names in datasets.values())
    figure, axes = plt.subplots(
        1,
        len(tasks),
        figsize=(1 + 5.2 * len(tasks), 1.2 + 0.3 * rows),
        squeeze=False,
        layout="constrained",
        sharex=True,
    )
    handles: list[Any] = []
    for axis, task in zip(axes.flat, tasks, strict=True):
        height = 0.8 / len(tokenizers)
        handles = []
        for nth, tokenizer in enumerate(tokenizers):
            chosen = lengths[(lengths["task"] == task) & (lengths["tokenizer"] == tokenizer)]
            groups = [chosen.loc[chosen["dataset"] == name, "tokens"].to_numpy() for name in datasets[task]]
            boxes = axis.boxplot(
                groups, orientation="horizontal", widths=0.85 * height, whis=(5, 95), showfliers=False,
                positions=np.arange(len(groups)) + (nth - (len(tokenizers) - 1) / 2) * height, patch_artist=True,
                boxprops={"facecolor": FILLS[nth % len(FILLS)], "edgecolor": "#333333", "linewidth": 0.7},
                medianprops={"color": "black", "linewidth": 1.3}, whiskerprops={"linewidth": 0.8},
                capprops={"linewidth": 0.8},
            )  # fmt: skip
            handles.append(boxes["boxes"][0])
        counts = lengths[lengths["task"] == task].groupby("dataset")["tokens"].size() // len(tokenizers)
        axis.set_yticks(range(len(datasets[task])), [f"{name} ({counts[name]})" for name in datasets[task]], fontsize=8)
        axis.set_ylim(-0.7, len(datasets[task]) - 0.3)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens / 1000:g}"))
        axis.set_xlabel("length of a prompt, thousand tokens")
        axis.set_title(task, fontsize=10, pad=14)
        for window in windows:
            axis.axvline(window, color=WINDOW_COLOUR, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
            axis.annotate(f"{window / 1024:g}k", (window, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
                          textcoords="offset points", fontsize=7, color=WINDOW_COLOUR, ha="center")  # fmt: skip
        tidy(axis, "x")
    labels = [f"tokenizer of {name}" for name in tokenizers]
    axes.flat[-1].legend(
        handles[::-1], labels[::-1], fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(1.0, 0.0)
    )
    return figure


def _by_median(lengths: pd.DataFrame) -> list[str]:
    """Data sets, the longest on top."""
    medians = lengths.groupby("dataset")["tokens"].median().sort_values()
    return [str(name) for name in medians.index]
