"""What the notebook's pictures share beyond `tasks/pictures/style.py`: panels in a grid, files, words beside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.pictures.style import caption_in, new_figure, write_caption

if TYPE_CHECKING:
    from IPython.display import Image

# Ids and dates would make every run's files differ.
SVG_OPTIONS: Any = {"svg.hashsalt": "gali", "svg.fonttype": "path"}


def panels(
    count: int,
    columns: int,
    size: tuple[float, float],
    margin: tuple[float, float],
    shared: tuple[str, str] | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes, at most `columns` beside each other.

    size: of a panel, margin: around all, both (width, height) in inches. shared: names of the x and y axes where all
    panels have the same ones; they stand at the left and below.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(margin[0] + size[0] * columns, margin[1] + size[1] * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=shared is not None, sharey=shared is not None)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    used = list(axes.flat[:count])
    if shared is not None:
        for axis in used[::columns]:
            axis.set_ylabel(shared[1])
        for axis in used[-columns:]:
            axis.set_xlabel(shared[0])
            axis.xaxis.set_tick_params(labelbottom=True)
    return figure, used


def publish(figure: Figure, name: str, folder: Path, dpi: int = 120, said: str = "") -> Image:
    """Save a figure as `name`.png and `name`.svg, the same bytes in every run, and return it for a notebook to show.

    said: what the caption says beside what the figure's own says.
    """
    from IPython.display import Image

    if said:
        write_caption(figure, " ".join(part for part in (caption_in(figure), said) if part))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    common: dict[str, Any] = {"bbox_inches": "tight", "facecolor": "white", "dpi": dpi}
    with matplotlib.rc_context(SVG_OPTIONS):
        figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True}, **common)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None}, **common)
    return Image(filename=str(path))


def describe(params: Mapping[str, object]) -> str:
    """A method's parameters in one line."""
    values = (
        f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}" for name, value in params.items()
    )
    return ", ".join(values) or "no parameters"


def note(text: str) -> None:
    """Markdown among a notebook's pictures."""
    from IPython.display import Markdown, display

    display(Markdown(text))
