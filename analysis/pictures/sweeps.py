"""Losses over one parameter, and scores over targets."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis.pictures.style import colour_of, tidy
from pipeline.figures import LINE_STYLES, style_of

MARKERS = ("o", "s", "^", "D")


def draw_sweeps(panels: Mapping[str, pd.DataFrame], titles: Mapping[str, str]) -> Figure:
    """A panel a parameter: mean loss beyond the window, a line a setting of the other parameter.

    panels: by the label of the x axis, tables from `analysis.runs.sweep`. titles: by the same labels.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(0.6 + 4.0 * len(panels), 3.6), squeeze=False, layout="constrained", sharey=True
    )
    for axis, (label, table) in zip(axes.flat, panels.items(), strict=True):
        for nth, (line, rows) in enumerate(table.groupby("line", sort=False)):
            axis.plot(rows["x"], rows["loss"], color=colour_of(rows["method"].iloc[0]), marker=MARKERS[nth],
                      markersize=5, linewidth=1.5, linestyle=LINE_STYLES[nth], label=line)  # fmt: skip
        _ticks(axis, sorted(set(table["x"])))
        axis.set_xlabel(label)
        axis.set_title(titles[label], fontsize=10)
        axis.legend(fontsize=8, frameon=False)
        tidy(axis)
    axes.flat[0].set_ylabel("mean loss beyond the window, nats a token")
    return figure


def _ticks(axis: Axes, values: list[float]) -> None:
    """Logarithmic, labelled where something was measured; every other one where they are many."""
    axis.set_xscale("log", base=2)
    shown = values if len(values) < 9 else values[::2]
    axis.set_xticks(shown)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _fraction(value)))


def _fraction(value: float) -> str:
    for denominator in (1, 2, 4, 8, 16):
        if value * denominator == round(value * denominator):
            return f"{round(value * denominator)}" + (f"/{denominator}" if denominator > 1 else "")
    return f"{value:.3g}"


def draw_trends(trends: pd.DataFrame) -> Figure:
    """Mean scores over target lengths: a panel a benchmark and model, a line a method, its best experiment a point.

    Points of incomplete experiments are hollow.
    """
    panels = list(trends.groupby(["task", "model"], sort=False))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.6 + 4.4 * columns, 0.4 + 3.4 * rows), squeeze=False, layout="constrained"
    )
    used = {}
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, ((task, model), table) in zip(axes.flat, panels, strict=False):
        for method, points in table.groupby("method", sort=False):
            best = points.loc[points.groupby("target")["score"].idxmax()]
            label, colour, marker = style_of(str(method))
            (used[label],) = axis.plot(best["target"] / 1024, best["score"], color=colour, marker=marker, linewidth=1.6)
            hollow = best[~best["complete"]]
            axis.plot(hollow["target"] / 1024, hollow["score"], linestyle="none", marker=marker, color=colour,
                      markerfacecolor="white")  # fmt: skip
        axis.set_xticks(sorted(set(table["target"] / 1024)))
        axis.set_xlabel("target length, × 1,024 tokens")
        axis.set_ylabel("mean score over data sets")
        axis.set_title(f"{task}, {model}", fontsize=10)
        tidy(axis)
    figure.legend(used.values(), used.keys(), fontsize=8, frameon=False, loc="outside right center")
    return figure
