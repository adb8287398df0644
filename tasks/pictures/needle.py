"""Needle tests as heatmaps: length × depth, one panel per experiment, all on one colour scale."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from tasks.pictures import style
from tasks.results import Experiment, Score, detailed

COLUMNS = 4
TICKS = 16
"""At most so many labels on an axis of depths, and of lengths as far as they have room."""
TITLE = 44
"""Characters in a line of a title."""


def draw_needles(experiments: Sequence[Experiment], digits: int = 3) -> Figure | None:
    """Share of trials with the answer, from 0 to 1, by length and depth; None without experiments.

    A panel's title has the mean over its lengths, as tables have it, with its interval; digits: decimals of these.
    """
    if not experiments:
        return None
    columns = min(COLUMNS, len(experiments))
    rows = math.ceil(len(experiments) / columns)
    titles = [
        "\n".join([*textwrap.wrap(label, TITLE), _overall(experiment).text(digits)])
        for label, experiment in zip(style.labels_of(experiments), experiments, strict=True)
    ]
    figure = style.new_figure(1.2 + 3.3 * columns, 0.6 + 3.3 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    colours = mpl.colormaps[style.MAP].with_extremes(bad=style.MISSING_COLOUR)
    lengths = sorted({cell["context_length"] for experiment in experiments for cell in experiment.result})
    depths = sorted({cell["depth_percent"] for experiment in experiments for cell in experiment.result})
    for index, axis in enumerate(axes.flat):
        if index >= len(experiments):
            axis.set_visible(False)
            continue
        image = _heatmap(axis, experiments[index], lengths, depths, colours)
        axis.set_title(titles[index], fontsize=9, color=style.DARK)
        axis.spines[:].set(color=style.style_of(experiments[index].method).colour, linewidth=2)
        if index % columns == 0:
            axis.set_ylabel("depth of the needle, %")
        if index + columns >= len(experiments):
            axis.set_xlabel("prompt, thousand tokens")
    bar = figure.colorbar(image, ax=axes, shrink=1 if rows == 1 else 0.5, pad=0.015)
    bar.set_label("share of trials with the answer")
    known = any(_overall(experiment).interval for experiment in experiments)
    note = "Titles: mean over lengths" + (", 95 % interval" if known else "")
    style.write_caption(figure, style.caption_of(experiments, note))
    return figure


def _overall(experiment: Experiment) -> Score:
    """The mean over cells, which have as many trials each, with what is known of it."""
    shares = [cell["score"] for cell in experiment.result]
    if not shares:
        return Score(None)
    return detailed(math.fsum(shares) / len(shares), experiment.results, "overall")


def _heatmap(
    axis: Axes, experiment: Experiment, lengths: Sequence[int], depths: Sequence[float], colours: Colormap
) -> AxesImage:
    """One panel; cells that the experiment does not have are grey."""
    cells = pd.DataFrame(experiment.result, columns=["context_length", "depth_percent", "score"])
    frame = cells.pivot(index="depth_percent", columns="context_length", values="score")
    frame = frame.reindex(index=list(depths), columns=list(lengths))
    image = axis.imshow(frame, aspect="auto", origin="upper", vmin=0, vmax=1, cmap=colours, interpolation="nearest")
    written = [f"{length / 1000:.3g}" for length in lengths]
    room = max(1, TICKS - 3 * (max(map(len, written)) - 1))
    step = math.ceil(len(lengths) / room)
    axis.set_xticks(range(0, len(lengths), step), written[::step])
    step = math.ceil(len(depths) / TICKS)
    shown = range(len(depths) - 1, -1, -step)
    axis.set_yticks(list(shown), [f"{depths[i]:.4g}" for i in shown])
    axis.tick_params(labelsize=7)
    _draw_borders(axis, len(lengths), len(depths))
    if experiment.window is not None:
        _mark_window_between_cells(axis, lengths, experiment.window)
    return image


def _draw_borders(axis: Axes, columns: int, rows: int) -> None:
    """White lines between cells, as minor grid lines."""
    axis.set_xticks([at - 0.5 for at in range(1, columns)], minor=True)
    axis.set_yticks([at - 0.5 for at in range(1, rows)], minor=True)
    axis.grid(which="minor", color="white", linewidth=0.8)
    axis.tick_params(which="minor", length=0)


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
