"""Relative distance over queries and keys, a panel a method."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter

from analysis.pictures.style import MAP, colour_of, label_of
from analysis.positions import Distances
from pipeline.figures import WINDOW_COLOUR

UNSEEN = "#C9C9C9"


def draw(panels: Mapping[str, Distances], window: int, notes: Mapping[str, str]) -> Figure:
    """All on one colour scale; distances beyond the window are grey and hatched, borders of bands are white lines.

    notes: what stands below a method's name: its parameters.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(0.8 + 2.75 * columns, 0.2 + 2.95 * rows), squeeze=False, layout="constrained",
        sharex=True, sharey=True,
    )  # fmt: skip
    for index, axis in enumerate(axes.flat):
        if index >= len(panels):
            axis.set_visible(False)
            continue
        method, panel = list(panels.items())[index]
        image = _panel(axis, panel, window)
        axis.set_title(f"{label_of(method)}\n{notes[method]}", fontsize=9, color=colour_of(method))
        if index % columns == 0:
            axis.set_ylabel("query i, thousand tokens")
        if index + columns >= len(panels):
            axis.set_xlabel("key j, thousand tokens")
            axis.xaxis.set_tick_params(labelbottom=True)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.015, extend="max")
    bar.set_label("distance seen, thousand tokens", fontsize=9)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(_thousands))
    bar.ax.annotate("beyond W", (1, 1), xycoords="axes fraction", xytext=(6, 8), textcoords="offset points", fontsize=8,
                    color=WINDOW_COLOUR, ha="left", va="bottom")  # fmt: skip
    return figure


def _panel(axis: Axes, panel: Distances, window: int) -> AxesImage:
    last = int(panel.keys[-1]) + 1
    distance = panel.distance.numpy()
    colours = plt.get_cmap(MAP).with_extremes(over=UNSEEN)
    image = axis.imshow(distance, extent=(0, last, last, 0), vmin=0, vmax=window, cmap=colours, interpolation="nearest")
    if (distance > window).any():
        grid = panel.keys.numpy() + 0.5
        axis.contourf(grid, grid, (distance > window).astype(float), levels=(0.5, 1.5), colors="none",
                      hatches=("////",))  # fmt: skip
        axis.contour(grid, grid, np.nan_to_num(distance), levels=(window,), colors=WINDOW_COLOUR, linewidths=1.2,
                     linestyles="--")  # fmt: skip
    _borders(axis, panel)
    axis.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axis.yaxis.set_major_formatter(FuncFormatter(_thousands))
    axis.tick_params(labelsize=8)
    return image


def _borders(axis: Axes, panel: Distances) -> None:
    """White lines where one band gives way to the next."""
    band = panel.band.numpy()
    grid = panel.keys.numpy() + 0.5
    for border in range(int(band.max())):
        inside = np.where(band < 0, np.nan, (band > border).astype(float))
        if np.nanmax(inside) > np.nanmin(inside):
            axis.contour(grid, grid, inside, levels=(0.5,), colors="white", linewidths=0.9)


def _thousands(tokens: float, _: object) -> str:
    return f"{tokens / 1000:g}"
