"""Losses over one parameter of a method or the window that it is told: what is varied, the measurement, the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from tqdm.auto import tqdm

from analysis.study import Params, Subject
from models.DPI.losses import mean_loss_beyond
from models.DPI.methods import METHODS
from models.DPI.methods.dpi import DPI
from models.DPI.methods.selfextend import SelfExtend, smallest_group
from models.DPI.methods.yarn import YaRN
from tasks.pictures.style import LINE_STYLES, new_figure, style_of, tidy

MARKERS = ("o", "s", "^", "D")


class Setting(NamedTuple):
    """One point: the method, its line's name, its place on the x axis, the parameters, and W (None: the study's)."""

    method: str
    line: str
    x: float
    params: Params
    window: int | None = None


def local_window_settings(window: int) -> list[Setting]:
    """GALI's ω as a share of W, chunk-free and in chunks of 3W/8."""
    shares = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
    chunks = {"chunk-free": 1, "chunk 3W/8": 3 * window // 8}
    return [
        Setting(DPI.name, line, share, {"local_window": int(share * window), "chunk_coe": chunk})
        for line, chunk in chunks.items()
        for share in shares
    ]


def chunk_settings(window: int) -> list[Setting]:
    """GALI's chunk as a multiple of W, for a small and a large ω."""
    chunks = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2)
    local_windows = {"ω = W/2": window // 2, "ω = W/16": window // 16}
    return [
        Setting(DPI.name, line, chunk, {"local_window": local_window, "chunk_coe": int(chunk * window)})
        for line, local_window in local_windows.items()
        for chunk in chunks
    ]


def group_settings(window: int, target: int) -> list[Setting]:
    """SelfExtend's group size, from the smallest that reaches the target, for three sizes of its neighbourhood."""
    settings = []
    for line, neighbours in (("w = W/4", window // 4), ("w = W/2", window // 2), ("w = 3W/4", 3 * window // 4)):
        least = smallest_group(window, neighbours, target)
        for group in sorted({least, math.ceil(1.5 * least), 2 * least}):
            params = {"group_size": group, "window_size": neighbours}
            settings.append(Setting(SelfExtend.name, line, float(group), params))
    return settings


def window_settings(window: int, target: int) -> list[Setting]:
    """A smaller W than the model's, with the parameters that each method sets itself for it."""
    shares = (1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
    chosen = [METHODS[name] for name in (DPI.name, SelfExtend.name, YaRN.name)]
    return [
        Setting(method.name, method.label, share, method.params_for(told, target), told)
        for method in chosen
        for share in shares
        for told in [int(share * window)]
    ]


def sweep(subject: Subject, texts: Sequence[str], length: int, settings: Sequence[Setting]) -> pd.DataFrame:
    """Mean loss beyond the study's window of `length` tokens for each setting, averaged over the study's texts.

    Returns a table with the columns method, line, x and loss. Raises ValueError for a setting that does not reach the
    length.
    """
    window = subject.study.window
    ids = subject.tokens(texts, length)
    rows = []
    for setting in tqdm(settings, desc="sweep", unit="setting", leave=False):
        model = subject.put(setting.method, setting.params, length, setting.window)
        loss = fmean(mean_loss_beyond(model, one, window) for one in ids)
        rows.append((setting.method, setting.line, setting.x, loss))
    return pd.DataFrame(rows, columns=["method", "line", "x", "loss"])


def draw(tables: Mapping[str, pd.DataFrame], titles: Mapping[str, str]) -> Figure:
    """A panel per parameter, a line per setting of the other parameter.

    tables: by the label of the x axis, from `sweep`. titles: by the same labels.
    """
    figure = new_figure(0.6 + 4.0 * len(tables), 3.6)
    axes = figure.subplots(1, len(tables), squeeze=False, sharey=True)
    for axis, (label, table) in zip(axes.flat, tables.items(), strict=True):
        for nth, (line, rows) in enumerate(table.groupby("line", sort=False)):
            axis.plot(rows["x"], rows["loss"], color=style_of(rows["method"].iloc[0]).colour, marker=MARKERS[nth],
                      markersize=5, linewidth=1.5, linestyle=LINE_STYLES[nth], label=line)  # fmt: skip
        _ticks(axis, sorted(set(table["x"])))
        axis.set_xlabel(label)
        axis.set_title(titles[label], fontsize=10)
        axis.legend(fontsize=8, frameon=False)
        tidy(axis)
    axes.flat[0].set_ylabel("mean loss beyond the window, nats per token")
    return figure


def _ticks(axis: Axes, values: list[float]) -> None:
    """Logarithmic, labelled where something was measured; every other one where they are many."""
    axis.set_xscale("log", base=2)
    shown = values if len(values) < 9 else values[::2]
    axis.set_xticks(shown)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _fraction(value)))


def _fraction(value: float) -> str:
    for denominator in (1, 2, 4, 8, 16):
        if value * denominator == round(value * denominator):
            return f"{round(value * denominator)}" + (f"/{denominator}" if denominator > 1 else "")
    return f"{value:.3g}"
