"""Needle tests as heatmaps: length × depth, one panel per experiment, all on one colour scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from tasks.pictures import style
from tasks.results import Experiment

COLUMNS = 4
TICKS = 8
"""At most so many labels on an axis."""


def draw_needles(experiments: Sequence[Experiment]) -> Figure | None:
    """Share of trials with the answer, from 0 to 1, by length and depth; None without experiments."""
    if not experiments:
        return None
    columns = min(COLUMNS, len(experiments))
    rows = math.ceil(len(experiments) / columns)
    figure = style.new_figure(1.2 + 3.3 * columns, 0.4 + 3.2 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    colours = mpl.colormaps[style.MAP].with_extremes(bad=style.MISSING_COLOUR)
    lengths = sorted({cell["context_length"] for experiment in experiments for cell in experiment.result})
    depths = sorted({cell["depth_percent"] for experiment in experiments for cell in experiment.result})
    for index, axis in enumerate(axes.flat):
        if index >= len(experiments):
            axis.set_visible(False)
            continue
        image = _heatmap(axis, experiments[index], lengths, depths, colours)
        if index % columns == 0:
            axis.set_ylabel("depth of the needle, %")
        if index + columns >= len(experiments):
            axis.set_xlabel("prompt, thousand tokens")
    bar = figure.colorbar(image, ax=axes, shrink=1 if rows == 1 else 0.5, pad=0.015)
    bar.set_label("share of trials with the answer")
    return figure


def _heatmap(
    axis: Axes, experiment: Experiment, lengths: Sequence[int], depths: Sequence[float], colours: Colormap
) -> AxesImage:
    """One panel; cells that the experiment does not have are grey."""
    cells = pd.DataFrame(experiment.result, columns=["context_length", "depth_percent", "score"])
    frame = cells.pivot(index="depth_percent", columns="context_length", values="score")
    frame = frame.reindex(index=list(depths), columns=list(lengths))
    image = axis.imshow(frame, aspect="auto", origin="upper", vmin=0, vmax=1, cmap=colours, interpolation="nearest")
    step = math.ceil(len(lengths) / TICKS)
    axis.set_xticks(range(0, len(lengths), step), [f"{length / 1000:g}" for length in lengths[::step]])
    step = math.ceil(len(depths) / TICKS)
    shown = range(len(depths) - 1, -1, -step)
    axis.set_yticks(list(shown), [f"{depths[i]:g}" for i in shown])
    if experiment.window is not None:
        _mark_window_between_cells(axis, lengths, experiment.window)
    axis.set_title(style.title_of(experiment), fontsize=9, color=style.style_of(experiment.method).colour)
    return image


def _mark_window_between_cells(axis: Axes, lengths: Sequence[float], window: int) -> None:
    """A dashed line between the cells within the window and those beyond; only a label where all are within."""
    within = sum(length <= window for length in lengths)
    inside = within < len(lengths)
    edge = max(within - 0.5, -0.48)
    if inside:
        axis.axvline(edge, color="white", linewidth=3.2)
        axis.axvline(edge, color=style.WINDOW_COLOUR, linewidth=1.4, linestyle=style.DASHES)
    axis.annotate(
        f"W = {window:,}" + ("" if inside else " →"), (edge, 0), xycoords=("data", "axes fraction"),
        xytext=(4 if inside else -4, 4), textcoords="offset points", ha="left" if inside else "right",
        va="bottom", fontsize=7, color=style.WINDOW_COLOUR,
        bbox={"boxstyle": "square,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.9},
    )  # fmt: skip
