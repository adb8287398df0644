"""Pictures of results: needle heatmaps, perplexity curves, mean scores.

One colour a method, the same in every picture, from a palette that colour-blind readers can tell apart (Okabe & Ito);
markers differ too. Heatmaps of all experiments share one colour scale. The window W is a dashed line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

if TYPE_CHECKING:
    from pipeline.report import Experiment

# Label, colour and marker of each method.
STYLES = {
    "dpi": ("GALI", "#D55E00", "o"),
    "repro_se": ("SelfExtend", "#0072B2", "s"),
    "repro_chunkllama": ("ChunkLlama", "#009E73", "^"),
    "repro_ntk": ("NTK", "#E69F00", "D"),
    "repro_dynamic_ntk": ("Dyn-NTK", "#56B4E9", "v"),
    "repro_yarn": ("YaRN", "#CC79A7", "P"),
    "repro_original": ("original", "#4D4D4D", "X"),
}
UNKNOWN_STYLE = ("unknown method", "#999999", ".")
LINE_STYLES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))

MISSING_COLOUR = "#DDDDDD"
WINDOW_COLOUR = "#D00000"
COLUMNS = 4
DPI = 150


def draw(task_name: str, experiments: Sequence[Experiment], path: Path) -> list[Path]:
    """Draw the picture of a task; returns the files written (none where there is nothing to draw)."""
    figure = _PAINTERS[task_name](experiments)
    if figure is None:
        return []
    figure.savefig(path, dpi=DPI, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return [path]


def style_of(method: str | None) -> tuple[str, str, str]:
    """Label, colour and marker of a method."""
    return STYLES.get(method or "", UNKNOWN_STYLE)


def needle_heatmaps(experiments: Sequence[Experiment]) -> Figure | None:
    """Length × depth, one panel an experiment, all on one colour scale from 0 to 1."""
    columns = min(COLUMNS, len(experiments))
    rows = math.ceil(len(experiments) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.2 + 3.3 * columns, 0.4 + 3.2 * rows), squeeze=False, layout="constrained",
        sharey=True,
    )  # fmt: skip
    colours = plt.get_cmap("cividis").with_extremes(bad=MISSING_COLOUR)
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
    axis: Axes,
    experiment: Experiment,
    lengths: Sequence[int],
    depths: Sequence[float],
    colours: matplotlib.colors.Colormap,
) -> matplotlib.image.AxesImage:
    """One panel; cells that the experiment does not have are grey."""
    cells = pd.DataFrame(experiment.result, columns=["context_length", "depth_percent", "score"])
    frame = cells.pivot(index="depth_percent", columns="context_length", values="score")
    frame = frame.reindex(index=list(depths), columns=list(lengths))
    image = axis.imshow(frame, aspect="auto", origin="upper", vmin=0, vmax=1, cmap=colours, interpolation="nearest")
    step = math.ceil(len(lengths) / 8)
    axis.set_xticks(range(0, len(lengths), step), [f"{length / 1000:g}" for length in lengths[::step]])
    step = math.ceil(len(depths) / 8)
    shown = range(len(depths) - 1, -1, -step)
    axis.set_yticks(list(shown), [f"{depths[i]:g}" for i in shown])
    if experiment.window is not None:
        _mark_window_between_cells(axis, lengths, experiment.window)
    axis.set_title(_title(experiment), fontsize=9, color=style_of(experiment.method)[1])
    return image


def _mark_window_between_cells(axis: Axes, lengths: Sequence[float], window: int) -> None:
    """A dashed line between the cells within the window and those beyond; only a label where all are within."""
    within = sum(length <= window for length in lengths)
    inside = within < len(lengths)
    edge = max(within - 0.5, -0.48)
    if inside:
        axis.axvline(edge, color="white", linewidth=3.2)
        axis.axvline(edge, color=WINDOW_COLOUR, linewidth=1.4, linestyle=(0, (4, 2)))
    axis.annotate(
        f"W = {window:,}" + ("" if inside else " →"), (edge, 0), xycoords=("data", "axes fraction"),
        xytext=(4 if inside else -4, 4), textcoords="offset points", ha="left" if inside else "right",
        va="bottom", fontsize=7, color=WINDOW_COLOUR,
        bbox={"boxstyle": "square,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.9},
    )  # fmt: skip


def perplexity_curves(experiments: Sequence[Experiment]) -> Figure | None:
    """Perplexity over length; a panel for each model and window, a line an experiment."""
    drawn = [experiment for experiment in experiments if experiment.result]
    if not drawn:
        return None
    panels: dict[tuple[str, int], list[Experiment]] = {}
    for experiment in drawn:
        panels.setdefault((experiment.model or "", experiment.window or 0), []).append(experiment)
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1 + 5.6 * columns, 0.8 + 3.6 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, ((model, window), members) in zip(axes.flat, panels.items(), strict=False):
        _curves(axis, members)
        if window:
            axis.axvline(window, color=WINDOW_COLOUR, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
            axis.annotate(
                f"W = {window:,}", (window, 1), xycoords=("data", "axes fraction"), xytext=(3, -9),
                textcoords="offset points", fontsize=8, color=WINDOW_COLOUR,
            )  # fmt: skip
        axis.set_title(model.rstrip("/").split("/")[-1], fontsize=10)
        axis.set_xlabel("length, thousand tokens")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens / 1000:g}"))
        axis.set_ylabel("perplexity")
    return figure


def _curves(axis: Axes, experiments: Sequence[Experiment]) -> None:
    settings: dict[str | None, int] = {}
    values: list[float] = []
    for index, experiment in enumerate(experiments):
        _, colour, marker = style_of(experiment.method)
        nth = settings[experiment.method] = settings.get(experiment.method, -1) + 1
        points = sorted((int(length), value) for length, value in experiment.result.items())
        every = max(1, len(points) // 8)
        values += [value for _, value in points]
        axis.plot(
            *zip(*points, strict=True), color=colour, marker=marker, markersize=4.5,
            # Curves that fall together stay visible: GALI's is wide and lies below, markers are not at one place.
            linewidth=3.6 if experiment.method == "dpi" else 1.5, zorder=2 if experiment.method == "dpi" else 3,
            markevery=(index % every, every), linestyle=LINE_STYLES[nth % len(LINE_STYLES)],
            label=_title(experiment, separator=" "),
        )  # fmt: skip
    if max(values) > 4 * min(values):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlim(left=0)
    axis.grid(color="#E5E5E5", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def mean_scores(experiments: Sequence[Experiment]) -> Figure | None:
    """The mean over a benchmark's data sets, a row an experiment, the best one on top."""
    from pipeline.report import average, flatten

    means = [(average(flatten(experiment.result)), experiment) for experiment in experiments]
    ranked = sorted(((mean, e) for mean, e in means if mean is not None), key=lambda pair: (pair[0], pair[1].name))
    if not ranked:
        return None
    figure, axis = plt.subplots(figsize=(7.2, 1.1 + 0.3 * len(ranked)), layout="constrained")
    used: dict[str, Line2D] = {}
    for row, (mean, experiment) in enumerate(ranked):
        label, colour, marker = style_of(experiment.method)
        axis.plot([0, mean], [row, row], color=colour, linewidth=1.2, alpha=0.5)
        (point,) = axis.plot(mean, row, color=colour, marker=marker, markersize=7, linestyle="none", label=label)
        axis.annotate(f"{mean:.2f}", (mean, row), xytext=(7, 0), textcoords="offset points", fontsize=8, va="center")
        used[label] = point
    axis.set_yticks(range(len(ranked)), [_title(experiment, separator=" ") for _, experiment in ranked], fontsize=8)
    axis.set_ylim(-0.6, len(ranked) - 0.4)
    axis.set_xlim(0, max(1e-9, max(mean for mean, _ in ranked)) * 1.12)
    axis.set_xlabel("mean score over data sets")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", color="#E5E5E5", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.legend(used.values(), used.keys(), fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _title(experiment: Experiment, separator: str = "\n") -> str:
    """The experiment's name, with its status behind it where something is missing."""
    return f"{experiment.name}{separator}({experiment.status})" if experiment.needs_mark else experiment.name


_PAINTERS: dict[str, Callable[[Sequence[Experiment]], Figure | None]] = {
    "needle": needle_heatmaps,
    "pg19": perplexity_curves,
    "longbench": mean_scores,
    "longbench_e": mean_scores,
    "leval": mean_scores,
    "passkey_retrieval": mean_scores,
}
