"""Perplexity over length: a panel for each model and window, a curve per experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from models.DPI.methods.dpi import DPI
from tasks.pictures import style
from tasks.results import Experiment

COLUMNS = 3
MARKERS = 8
"""About so many on a curve."""


def draw_perplexity(experiments: Sequence[Experiment]) -> Figure | None:
    """Curves of the experiments that have a perplexity at some length; None if none has."""
    panels: dict[tuple[str, int], list[Experiment]] = {}
    for experiment in experiments:
        if experiment.result:
            panels.setdefault((experiment.model or "", experiment.window or 0), []).append(experiment)
    if not panels:
        return None
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = style.new_figure(1 + 5.6 * columns, 0.8 + 3.6 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, ((model, window), members) in zip(axes.flat, panels.items(), strict=False):
        _curves(axis, members)
        if window:
            style.mark_window(axis, window)
        axis.set_title(model.rstrip("/").split("/")[-1], fontsize=10)
        axis.set_xlabel("length, thousand tokens")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens / 1000:g}"))
        axis.set_ylabel("perplexity")
    return figure


def _curves(axis: Axes, experiments: Sequence[Experiment]) -> None:
    """One panel. Experiments of one method have its colour and differ in their lines."""
    settings: dict[str | None, int] = {}
    values: list[float] = []
    for index, experiment in enumerate(experiments):
        look, ours = style.style_of(experiment.method), experiment.method == DPI.name
        nth = settings[experiment.method] = settings.get(experiment.method, -1) + 1
        points = sorted((int(length), value) for length, value in experiment.result.items())
        every = max(1, len(points) // MARKERS)
        values += [value for _, value in points]
        axis.plot(
            *zip(*points, strict=True), color=look.colour, marker=look.marker, markersize=4.5,
            # Curves that fall together stay visible: GALI's is wide and lies below, markers are not at one place.
            linewidth=3.6 if ours else 1.5, zorder=2 if ours else 3,
            markevery=(index % every, every), linestyle=style.LINE_STYLES[nth % len(style.LINE_STYLES)],
            label=style.title_of(experiment, separator=" "),
        )  # fmt: skip
    if max(values) > 4 * min(values):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlim(left=0)
    style.tidy(axis)
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
