"""The relative distance that a method shows the model, over queries i and keys j."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from analysis.pictures import panels
from models.DPI.methods import Method, Rope
from tasks.pictures.style import DARK, MAP, WINDOW_COLOUR, style_of

SLOWEST = -1


@dataclass(frozen=True)
class Distances:
    """distance: (T, N) fp64, NaN where the query does not see the key. band: (T, N) int64, -1 there.

    queries, keys: indices of the rows and columns.
    """

    queries: Tensor
    keys: Tensor
    distance: Tensor
    band: Tensor


def relative_distances(method: Method, rope: Rope, length: int, cells: int, frequency: int = SLOWEST) -> Distances:
    """Distances of a prompt of `length` tokens, at `cells` evenly spaced queries and keys.

    The distance is the angle between query and key at one frequency over what the stock model rotates in one position
    there. Methods that change positions have one distance at all frequencies; NTK and YaRN slow the slow ones down, so
    `frequency` (an index, fast to slow) is the slowest unless given.
    """
    index = torch.linspace(0, length - 1, min(cells, length)).round().long()
    distance = torch.full((len(index), len(index)), math.nan, dtype=torch.float64)
    band_of = torch.full(distance.shape, -1)
    own = rope.inv_freq[frequency].double()
    for segment in method.segments(rope, 0, length):
        rows = (index >= segment.first) & (index < segment.last)
        at = index[rows] - segment.first
        for number, band in enumerate(segment.bands):
            start, stop = band.start[at, None], band.stop[at, None]
            inside = (index >= start) & (index < stop)
            query, key = (_at(positions, frequency) for positions in (band.query_positions, band.keys(index)))
            rotated = query[at, None] - key[None]
            rotated = rotated * (band.frequencies.inv_freq[frequency].double() / own)
            distance[rows] = torch.where(inside, rotated, distance[rows])
            band_of[rows] = torch.where(inside, number, band_of[rows])
    return Distances(index, index, distance, band_of)


def _at(positions: Tensor, frequency: int) -> Tensor:
    """Positions (N,) at a frequency."""
    return positions if positions.ndim == 1 else positions[:, frequency]


UNSEEN = "#C9C9C9"


def draw(distances: Mapping[str, Distances], window: int, notes: Mapping[str, str]) -> Figure:
    """A panel per method, all on one colour scale; beyond W it is grey and hatched, borders of bands are white.

    notes: what stands below a method's name: its parameters.
    """
    names = "key j, thousand tokens", "query i, thousand tokens"
    figure, axes = panels(len(distances), 4, (2.75, 2.95), (0.8, 0.2), names)
    for axis, (method, seen) in zip(axes, distances.items(), strict=True):
        image = panel(axis, seen, window)
        style = style_of(method)
        axis.set_title(f"{style.label}\n{notes[method]}", fontsize=9, color=DARK)
        axis.spines[:].set(color=style.colour, linewidth=2)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.015, extend="max")
    bar.set_label("distance seen, thousand tokens", fontsize=9)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(thousands))
    bar.ax.annotate("beyond W", (1, 1), xycoords="axes fraction", xytext=(6, 8), textcoords="offset points", fontsize=8,
                    color=WINDOW_COLOUR, ha="left", va="bottom")  # fmt: skip
    return figure


def panel(axis: Axes, seen: Distances, window: int) -> AxesImage:
    """One map; beyond W it is grey and hatched, borders of bands are white."""
    last = int(seen.keys[-1]) + 1
    distance = seen.distance.numpy()
    colours = colormaps[MAP].with_extremes(over=UNSEEN)
    image = axis.imshow(distance, extent=(0, last, last, 0), vmin=0, vmax=window, cmap=colours, interpolation="nearest")
    if (distance > window).any():
        grid = seen.keys.numpy() + 0.5
        axis.contourf(grid, grid, (distance > window).astype(float), levels=(0.5, 1.5), colors="none",
                      hatches=("////",))  # fmt: skip
        axis.contour(grid, grid, np.nan_to_num(distance), levels=(window,), colors=WINDOW_COLOUR, linewidths=1.2,
                     linestyles="--")  # fmt: skip
    _borders(axis, seen)
    axis.xaxis.set_major_formatter(FuncFormatter(thousands))
    axis.yaxis.set_major_formatter(FuncFormatter(thousands))
    axis.tick_params(labelsize=8)
    return image


def _borders(axis: Axes, seen: Distances) -> None:
    """White lines where one band gives way to the next."""
    band = seen.band.numpy()
    grid = seen.keys.numpy() + 0.5
    for border in range(int(band.max())):
        inside = np.where(band < 0, np.nan, (band > border).astype(float))
        if np.nanmax(inside) > np.nanmin(inside):
            axis.contour(grid, grid, inside, levels=(0.5,), colors="white", linewidths=0.9)


def thousands(tokens: float, _: object) -> str:
    """An axis' label, as matplotlib asks for it."""
    return f"{tokens / 1000:g}"
