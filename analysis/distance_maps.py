"""A map of distances of every registered method: what query i is shown of key j, at one window and target.

No model is asked. A method stands with its own parameters for the window and the target (`Method.params_for`); rotary
angles are Llama-3's (128 wide, theta 500,000), which only matter where frequencies are slowed down: distances are those
of the slowest, the first to leave the window.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from analysis.pictures import describe, panels
from analysis.positions import Distances, panel, relative_distances, thousands
from models.DPI.methods import METHODS, Method, Rope, build_method
from models.DPI.methods.base import frequencies_of
from tasks.pictures.style import DARK, QUIET, new_figure, style_of

HEAD_DIM, THETA = 128, 500_000.0
CELLS = 128
MOST_CHARACTERS = 44
"""Of a line above a panel."""


def setting(name: str, window: int, target: int) -> tuple[Method, dict[str, Any], int]:
    """The method with its own parameters, those, and the longest input up to the target that it reaches with them."""
    params = METHODS[name].params_for(window, target)
    method = build_method(name, params, window)
    return method, params, int(min(target, method.reach(window)))


def distances(method: Method, window: int, length: int, cells: int = CELLS) -> Distances:
    """The map of an input of `length` tokens."""
    return relative_distances(method, Rope(frequencies_of(THETA, HEAD_DIM), window, THETA), length, cells)


def facts(method: Method, seen: Distances, window: int) -> str:
    """The farthest distance shown, in windows, how many bands there are, and whether the method is causal."""
    known = seen.distance[~seen.distance.isnan()]
    bands = int(seen.band.max()) + 1
    causal = "causal" if method.is_causal() else "not causal"
    return f"up to {float(known.max()) / window:.2f} W, {bands} band{'s' * (bands > 1)}, {causal}"


def draw_all(window: int, target: int, names: Iterable[str] = METHODS, columns: int = 6) -> Figure:
    """A panel for each method, all on one colour scale up to W.

    Above a panel stand the method, its parameters and its facts. One that does not reach the target is drawn as far as
    it does, and says so.
    """
    names = list(names)
    shared = "key j, thousand tokens", "query i, thousand tokens"
    figure, axes = panels(len(names), columns, (2.5, 2.95), (0.8, 0.2))
    for number, (axis, name) in enumerate(zip(axes, names, strict=True)):
        method, params, length = setting(name, window, target)
        seen = distances(method, window, length)
        image = panel(axis, seen, window)
        style = style_of(name)
        reach = "" if length == target else f"reaches {length / 1000:.3g} thousand tokens\n"
        axis.set_title(
            f"{reach}{_shortened(describe(params))}\n{facts(method, seen, window)}", fontsize=6.5, color=QUIET
        )
        axis.text(0.97, 0.96, style.label, transform=axis.transAxes, ha="right", va="top", fontsize=9, color=DARK,
                  fontweight="bold")  # fmt: skip
        axis.spines[:].set(color=style.colour, linewidth=2)
        if number % columns == 0:
            axis.set_ylabel(shared[1], fontsize=8)
        if number >= len(names) - columns:
            axis.set_xlabel(shared[0], fontsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, pad=0.015, extend="max")
    bar.set_label(f"distance seen, thousand tokens, up to W = {window:,}; hatched: beyond it", fontsize=9)
    bar.ax.yaxis.set_major_formatter(thousands)
    return figure


def _shortened(text: str) -> str:
    """A line that fits above a panel."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


def draw_one(name: str, window: int, target: int) -> Figure:
    """The map of one method, small, with axes in windows."""
    method, _, length = setting(name, window, target)
    seen = distances(method, window, length)
    figure = new_figure(2.3, 1.95)
    axis = figure.subplots()
    image = panel(axis, seen, window)
    axis.set_xlabel("key j", fontsize=7)
    axis.set_ylabel("query i", fontsize=7)
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_ticks([0, window, *([length] if length > 1.2 * window else [])])
        ticks.set_major_formatter(lambda tokens, _: f"{tokens / window:.3g}{' W' if tokens else ''}")
    axis.tick_params(labelsize=7)
    bar = figure.colorbar(image, ax=axis, shrink=0.9, extend="max")
    bar.set_ticks([0, window], labels=["0", "W"])
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=7)
    return figure
