"""What all pictures share: a method's colour, the window's mark, and how a picture is saved.

Colours are those of `pipeline/figures.py`, the same for a method in every picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.figures import WINDOW_COLOUR, style_of

if TYPE_CHECKING:
    from IPython.display import Image

DASHES = (0, (4, 2))
GRID = "#E5E5E5"
MAP = "cividis"
# Ids and dates would make every run's files differ.
SVG_OPTIONS: Any = {"svg.hashsalt": "gali", "svg.fonttype": "path"}


def publish(figure: Figure, name: str, folder: Path, dpi: int = 120) -> Image:
    """Save a figure as `name`.png and `name`.svg, close it, and return it for a notebook to show."""
    from IPython.display import Image

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    common: dict[str, Any] = {"bbox_inches": "tight", "facecolor": "white", "dpi": dpi}
    with plt.rc_context(SVG_OPTIONS):
        figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True}, **common)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None}, **common)
    plt.close(figure)
    return Image(filename=str(path))


def label_of(method: str) -> str:
    """The method's name in pictures."""
    return style_of(method)[0]


def colour_of(method: str) -> str:
    """The method's colour."""
    return style_of(method)[1]


def describe(params: Mapping[str, object]) -> str:
    """A method's parameters in a line."""
    values = (
        f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}" for name, value in params.items()
    )
    return ", ".join(values) or "no parameters"


def tidy(axis: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Grid lines behind the data, no frame above and right."""
    axis.grid(axis=grid, color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def mark_window(axis: Axes, window: float, *, label: str | None = None, top: bool = True) -> None:
    """A dashed line at x = W, with its name beside its end."""
    axis.axvline(window, color=WINDOW_COLOUR, linewidth=1.2, linestyle=DASHES, zorder=1)
    axis.annotate(
        f"W = {window:,g}" if label is None else label, (window, 1 if top else 0),
        xycoords=("data", "axes fraction"), xytext=(3, -9 if top else 5), textcoords="offset points",
        fontsize=8, color=WINDOW_COLOUR,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip


def note(text: str) -> None:
    """A line of Markdown among a notebook's pictures."""
    from IPython.display import Markdown, display

    display(Markdown(text))
