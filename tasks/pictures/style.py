"""What all pictures share: one colour and marker per method, the window's mark, plain axes.

Methods' colours are theirs (`Method.colour`), the same in every picture. Those of GALI's paper have a palette that
colour-blind readers can tell apart (Okabe & Ito); seventeen colours are too many for that, but markers differ too. The
window W is a dashed line. Figures are made without pyplot, so that nothing here chooses a backend.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
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
STRIPE = "#F5F5F5"
DARK = "#222222"
"""Of titles: methods' own colours are too light to read on white."""
QUIET = "#555555"
MAP = "cividis"
RESOLUTION = 150
"""Dots per inch."""
CHARACTERS_PER_INCH = 17
"""Of a caption."""

FILLS: tuple[dict[str, Any], ...] = (
    {"fillstyle": "full"},
    {"fillstyle": "full", "markerfacecolor": "white"},
    {"fillstyle": "left", "markerfacecoloralt": "white"},
    {"fillstyle": "bottom", "markerfacecoloralt": "white"},
    {"fillstyle": "right", "markerfacecoloralt": "white"},
    {"fillstyle": "top", "markerfacecoloralt": "white"},
)
"""Keywords of markers that would else look the same."""


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


def name_window_beyond(axis: Axes, window: float) -> None:
    """The window's name at the right end of an axis that does not reach it."""
    axis.annotate(
        f"W = {window:,.15g} →", (1, 1), xycoords="axes fraction", xytext=(-4, -9), textcoords="offset points",
        ha="right", fontsize=8, color=WINDOW_COLOUR,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip


def labels_of(experiments: Sequence[Experiment], apart: Sequence[str] = ("model", "window", "target")) -> list[str]:
    """What experiments are called beside each other: methods, with what they differ in, and what is missing of them.

    apart: which of model, window and target are told where they differ; a picture may have them elsewhere. Parameters
    are told of experiments that would else be called the same, and their names where parameters do not differ either.
    An experiment of an unknown method goes by its name.
    """
    found = [
        style_of(experiment.method).label if experiment.method in METHODS else experiment.name
        for experiment in experiments
    ]
    for name in apart:
        values = [_facet(experiment, name) for experiment in experiments]
        if len(set(values)) > 1:
            found = _with(found, values)
    found = _with(found, _among_namesakes(found, experiments, _different_params))
    found = _with(found, _among_namesakes(found, experiments, lambda members: [one.name for one in members]))
    return [
        plain(f"{label} ({experiment.status})" if experiment.needs_mark else label)
        for label, experiment in zip(found, experiments, strict=True)
    ]


def _with(labels: Sequence[str], more: Sequence[str]) -> list[str]:
    return [f"{label}, {text}" if text else label for label, text in zip(labels, more, strict=True)]


def _facet(experiment: Experiment, name: str) -> str:
    value = getattr(experiment, name)
    if value is None:
        return ""
    if name == "model":
        return short_model(value)
    return f"W = {value:,}" if name == "window" else f"to {value:,}"


def _among_namesakes(
    labels: Sequence[str],
    experiments: Sequence[Experiment],
    tell: Callable[[Sequence[Experiment]], Sequence[str]],
) -> list[str]:
    """What `tell` says of the experiments that share a label; nothing of the others."""
    found = [""] * len(labels)
    for label in set(labels):
        places = [place for place, other in enumerate(labels) if other == label]
        if len(places) > 1:
            for place, text in zip(places, tell([experiments[place] for place in places]), strict=True):
                found[place] = text
    return found


def _different_params(experiments: Sequence[Experiment]) -> list[str]:
    settings = [_all_params(experiment) for experiment in experiments]
    names = sorted({name for setting in settings for name in setting})
    different = [name for name in names if len({repr(setting.get(name)) for setting in settings}) > 1]
    return [", ".join(f"{name} {setting[name]}" for name in different if name in setting) for setting in settings]


def _all_params(experiment: Experiment) -> dict[str, Any]:
    """An experiment's parameters, with the method's defaults where it gives none: to write one is no difference."""
    method = METHODS.get(experiment.method or "")
    fields = {} if method is None else method.model_fields
    own = {name: field.default for name, field in fields.items() if not field.is_required()}
    return {**own, **experiment.params}


def fills_of(experiments: Sequence[Experiment]) -> list[dict[str, Any]]:
    """How markers are filled, in turn among the experiments of one method."""
    seen: dict[str | None, int] = {}
    found = []
    for experiment in experiments:
        nth = seen[experiment.method] = seen.get(experiment.method, -1) + 1
        found.append(FILLS[nth % len(FILLS)])
    return found


def plain(text: str) -> str:
    """The text of a file as a picture's text, in which dollars would begin a formula."""
    return text.replace("$", r"\$")


def short_model(name: str) -> str:
    """A model's name without its owner or folder."""
    return name.rstrip("/").split("/")[-1]


def caption_of(experiments: Sequence[Experiment], *more: str) -> str:
    """What the figures are of: model, window, target and device as far as they are known, then `more`."""

    def known(values: Iterable[Any]) -> list[Any]:
        return list(dict.fromkeys(value for value in values if value is not None))

    windows = sorted(known(experiment.window for experiment in experiments))
    targets = sorted(known(experiment.target for experiment in experiments))
    facts = (
        ", ".join(known(short_model(experiment.model) if experiment.model else None for experiment in experiments)),
        f"W = {_listed(windows)}" if windows else "",
        f"target {_listed(targets)} tokens" if targets else "",
        ", ".join(known(experiment.device for experiment in experiments)),
    )
    return ". ".join(part for part in ("; ".join(fact for fact in facts if fact), *more) if part) + "."


def _listed(lengths: Sequence[int]) -> str:
    """1,024, 2,048 and 4,096."""
    *others, last = (f"{length:,}" for length in lengths)
    return " and ".join([", ".join(others), last] if others else [last])


def caption_in(figure: Figure) -> str:
    """What `write_caption` has written below a figure; empty where it has not."""
    return " ".join(figure.get_supxlabel().replace(r"\$", "$").split())


def write_caption(figure: Figure, text: str) -> None:
    """Below a figure, in lines as long as the figure is wide."""
    width = int(figure.get_figwidth() * CHARACTERS_PER_INCH)
    figure.supxlabel(plain("\n".join(textwrap.wrap(text, width))), x=0.01, ha="left", fontsize=7.5, color=QUIET)


Target = TypeVar("Target", Path, BinaryIO)


def save(figure: Figure, target: Target) -> Target:
    """Write a figure as PNG to a path or an open file, which is returned."""
    figure.savefig(target, format="png", dpi=RESOLUTION, bbox_inches="tight", facecolor="white")
    return target
