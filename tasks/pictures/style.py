"""What all pictures share: one colour and marker per method, the window's mark, plain axes.

Methods' colours are theirs (`Method.colour`), the same in every picture. Those of GALI's paper have a palette that
colour-blind readers can tell apart (Okabe & Ito); seventeen colours are too many for that, but markers differ too. The
window W is a dashed line. Figures are made without pyplot, so that nothing here chooses a backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.DPI.methods import METHODS
from tasks.results import Experiment

LINE_STYLES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
DASHES = (0, (4, 2))
MISSING_COLOUR = "#DDDDDD"
WINDOW_COLOUR = "#D00000"
GRID = "#E5E5E5"
MAP = "cividis"
RESOLUTION = 150
"""Dots per inch."""


@dataclass(frozen=True)
class Style:
    """How a method is drawn."""

    label: str
    colour: str
    marker: str


def style_of(method: str | None) -> Style:
    """The style of the method of that name; grey for one that is not known here."""
    found = METHODS.get(method or "")
    return Style("unknown method", "#999999", ".") if found is None else Style(found.label, found.colour, found.marker)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches wide and high, whose parts make room for each other."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axis: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Grid lines behind the data, no frame above and right."""
    axis.grid(axis=grid, color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def mark_window(axis: Axes, window: float, *, label: str | None = None, top: bool = True) -> None:
    """A dashed line at x = W, with its name beside its end."""
    axis.axvline(window, color=WINDOW_COLOUR, linewidth=1.2, linestyle=DASHES, zorder=1)
    axis.annotate(
        f"W = {window:,.15g}" if label is None else label, (window, 1 if top else 0),
        xycoords=("data", "axes fraction"), xytext=(3, -9 if top else 5), textcoords="offset points",
        fontsize=8, color=WINDOW_COLOUR,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip


def title_of(experiment: Experiment, separator: str = "\n") -> str:
    """The experiment's name, with its status behind it where something is missing."""
    return f"{experiment.name}{separator}({experiment.status})" if experiment.needs_mark else experiment.name


Target = TypeVar("Target", Path, BinaryIO)


def save(figure: Figure, target: Target) -> Target:
    """Write a figure as PNG to a path or an open file, which is returned."""
    figure.savefig(target, format="png", dpi=RESOLUTION, bbox_inches="tight", facecolor="white")
    return target
