"""Attention maps, their rows' entropies, and how far they are from the original's."""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from analysis.attention_maps import thumbnail
from analysis.pictures.style import DASHES, MAP, colour_of, label_of, mark_window, tidy
from pipeline.figures import WINDOW_COLOUR, style_of

CELLS = 96
"""Side of a map in a picture; each cell is the mean of a square of entries."""


def draw_maps(maps: Mapping[str, Tensor], window: int) -> Figure:
    """Maps (T, T) of methods on one logarithmic scale of probability. Beyond the dashed lines i or i − j passes W."""
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(0.9 + 2.75 * columns, 0.2 + 2.85 * rows), squeeze=False, layout="constrained",
        sharex=True, sharey=True,
    )  # fmt: skip
    small = {name: thumbnail(attention, CELLS).cpu() for name, attention in maps.items()}
    seen = next(iter(small.values()))
    values = seen[seen > 0]
    norm = LogNorm(float(values.quantile(0.02)), float(values.quantile(0.995)))
    for index, axis in enumerate(axes.flat):
        if index >= len(maps):
            axis.set_visible(False)
            continue
        name = list(maps)[index]
        length = maps[name].shape[-1]
        masked = small[name].masked_fill(small[name] == 0, float("nan"))
        image = axis.imshow(masked, extent=(0, length, length, 0), norm=norm, cmap=MAP, interpolation="nearest")
        axis.plot([0, length - window], [window, length], color=WINDOW_COLOUR, linewidth=1, linestyle=DASHES)
        axis.plot([0, window], [window, window], color=WINDOW_COLOUR, linewidth=1, linestyle=DASHES)
        axis.set_xlim(0, length)
        axis.set_ylim(length, 0)
        axis.annotate(f"i = W = {window:,}", (length, window), xytext=(-3, 0), textcoords="offset points", fontsize=8,
                      color=WINDOW_COLOUR, ha="right", va="center")  # fmt: skip
        axis.annotate("i − j = W", (length - window, length), xytext=(-14, 12), textcoords="offset points", fontsize=8,
                      color=WINDOW_COLOUR, ha="right", va="bottom",
                      bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"})  # fmt: skip
        axis.set_title(label_of(name), fontsize=10, color=colour_of(name))
        axis.tick_params(labelsize=8)
        if index % columns == 0:
            axis.set_ylabel("query i, tokens")
        if index + columns >= len(maps):
            axis.set_xlabel("key j, tokens")
            axis.xaxis.set_tick_params(labelbottom=True)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.015, extend="both")
    bar.set_label("attention probability, mean over heads and layers")
    return figure


def draw_entropies(entropies: Mapping[str, Tensor], original: str, window: int, smooth: int) -> Figure:
    """Two panels: the entropy of each query's row by method, and its difference to the method `original`.

    entropies: (T,) in nats. smooth: queries averaged for a point of a line.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.6, 3.8), layout="constrained")
    for name, entropy in entropies.items():
        label, colour, marker = style_of(name)
        at, values = _smoothed(entropy, smooth)
        _, reference = _smoothed(entropies[original], smooth)
        options = {"color": colour, "marker": marker, "markersize": 4, "markevery": 6, "linewidth": 1.5}
        left.plot(at, values, label=label, **options)
        if name != original:
            right.plot(at, values - reference, **options)
    right.axhline(0, color=colour_of(original), linewidth=1)
    left.set_ylabel("entropy of the row, nats")
    right.set_ylabel(f"difference to {label_of(original)}, nats")
    for axis in (left, right):
        axis.set_xlabel("query i, tokens")
        mark_window(axis, window, top=False)
        tidy(axis)
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right center")
    return figure


def _smoothed(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Means of groups of `width` neighbours, and their middles."""
    groups = values[: len(values) // width * width].reshape(-1, width).double().cpu()
    middles = (groups.new_tensor(range(len(groups))) + 0.5) * width
    return middles, groups.mean(1)


def draw_differences(table: pd.DataFrame, window: int) -> Figure:
    """Bars and boxes over groups of distances, from `analysis.differences.by_distance`; the window is a line."""
    figure, (bars, boxes) = plt.subplots(2, 1, figsize=(9.6, 6.4), layout="constrained", sharex=True)
    methods = list(dict.fromkeys(table["method"]))
    groups = list(dict.fromkeys(zip(table["low"], table["high"], strict=True)))
    width = 0.84 / len(methods)
    for nth, method in enumerate(methods):
        rows = table[table["method"] == method]
        at = [group + (nth - (len(methods) - 1) / 2) * width for group in range(len(groups))]
        bars.bar(at, 100 * rows["absolute"], width=0.9 * width, color=colour_of(method))
        statistics = [
            {"whislo": row.q5, "q1": row.q25, "med": row.q50, "q3": row.q75, "whishi": row.q95}
            for row in rows.itertuples()
        ]
        boxes.bxp(
            statistics, positions=at, widths=0.8 * width, showfliers=False, patch_artist=True, manage_ticks=False,
            boxprops={"facecolor": colour_of(method), "linewidth": 0.5}, capprops={"linewidth": 0.6},
            medianprops={"color": "white", "linewidth": 1.2}, whiskerprops={"linewidth": 0.6},
        )  # fmt: skip
    bars.set_ylabel("mean |difference|,\n% of the original's attention")
    boxes.set_ylabel("method / original, key by key\n(box: quartiles, line: 5 to 95 %)")
    boxes.axhline(0, color="#4D4D4D", linewidth=0.9)
    low, high = boxes.get_ylim()
    ratios = [digit * 10.0**power for power in range(-9, 9) for digit in (1, 2, 5)]
    shown = [ratio for ratio in ratios if low < math.log10(ratio) < high]
    boxes.set_yticks([math.log10(ratio) for ratio in shown], [f"{ratio:g}" for ratio in shown])
    boxes.set_xticks(range(len(groups)), [f"{low:,}–{high - 1:,}" for low, high in groups], fontsize=8)
    boxes.set_xlabel("relative distance i − j, tokens")
    edge = next((n for n, (low, _) in enumerate(groups) if low >= window), len(groups)) - 0.5
    for axis in (bars, boxes):
        _mark_edge(axis, edge, window)
        tidy(axis, "y")
    handles = [Patch(color=colour_of(method), label=label_of(method)) for method in methods]
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside right center")
    return figure


def _mark_edge(axis: Axes, edge: float, window: int) -> None:
    axis.axvline(edge, color=WINDOW_COLOUR, linewidth=1.2, linestyle=DASHES)
    axis.annotate(f"W = {window:,}", (edge, 1), xycoords=("data", "axes fraction"), xytext=(3, -9),
                  textcoords="offset points", fontsize=8, color=WINDOW_COLOUR)  # fmt: skip
