"""Mean scores of the experiments in a results folder, over target lengths or over the window that methods were told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.pictures import panels
from models.DPI.methods.original import Original
from pipeline import store
from pipeline.report import read_experiment
from tasks import get_task
from tasks.errors import UserError
from tasks.pictures.style import DASHES, style_of, tidy, write_caption
from tasks.results import RESULT_FILE, Experiment

COLUMNS = [
    "task", "model", "method", "experiment", "window", "target", "score", "datasets", "complete", "low", "high",
    "device",
]  # fmt: skip
BESIDE = 0.008
"""From one method's intervals to the next, as a part of the longest target or the largest window."""
NOT_KNOWN = (math.nan, math.nan)
KILO = 1024


def stored(results: Path, task_name: str) -> list[Experiment]:
    """The scored experiments of a benchmark in a results folder that know their target."""
    task = get_task(task_name)
    try:
        folders = store.list_experiments(results, task)
    except UserError:  # none yet
        return []
    found = [read_experiment(folder, task) for folder in folders]
    return [one for one in found if one.scores.get(RESULT_FILE) and one.target is not None]


def collect_trends(results: Path, task_name: str) -> pd.DataFrame:
    """Scored experiments of a benchmark that know their target, one row each.

    score: the mean over those data sets that all experiments of the model have, `datasets` of them. complete: whether
    every record has a prediction. low, high: the mean's 95 % interval, NaN where it is not known. device: what
    it ran on.
    """
    task = get_task(task_name)
    rows = []
    experiments = stored(results, task_name)
    shared: dict[str | None, set[str]] = {}  # by model, the data sets that all its experiments have a score of
    for experiment in experiments:
        known = {name for name, score in experiment.scores[RESULT_FILE].items() if score.score is not None}
        shared[experiment.model] = shared.get(experiment.model, known) & known
    for experiment in experiments:
        its_scores = experiment.scores[RESULT_FILE].items()
        scores = {name: score for name, score in its_scores if name in shared[experiment.model]}
        mean = task.average(scores) if scores else None
        if mean is None:
            continue
        model = (experiment.model or "").rstrip("/").split("/")[-1]
        head = (task_name, model, experiment.method, experiment.name, experiment.window, experiment.target)
        rows.append(
            (*head, mean.score, mean.count, not experiment.needs_mark, *(mean.interval or NOT_KNOWN), experiment.device)
        )
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("target", kind="stable", ignore_index=True)


def draw(trends: pd.DataFrame, over: Literal["target", "window"] = "target") -> Figure:
    """Mean scores over target lengths or windows, a line per method, the best of its experiments.

    A panel per benchmark, model and window or target. Points of incomplete experiments are hollow. Bars are 95 %
    intervals of the means, a little beside each other. The original does not know a window: over windows it is a line.
    """
    other = "window" if over == "target" else "target"
    tables = list(trends.groupby(["task", "model", other], sort=False, dropna=False))
    figure, axes = panels(len(tables), 3, (4.4, 3.4), (1.6, 0.4))
    used: dict[str, Any] = {}
    for axis, ((task, model, fixed), table) in zip(axes, tables, strict=True):
        places = sorted(set(table[over] / KILO))
        level = (table["method"] == Original.name) & (over == "window")
        groups = list(table[~level].groupby("method", sort=False))
        if level.any():
            used[style_of(Original.name).label] = _level(axis, table[level])
        for nth, (method, points) in enumerate(groups):
            beside = BESIDE * places[-1] * (nth - (len(groups) - 1) / 2)
            used[style_of(str(method)).label] = _line(axis, str(method), points, over, beside)
        axis.set_xticks(places)
        axis.set_xlabel("target length, × 1,024 tokens" if over == "target" else "window W, × 1,024 tokens")
        count = int(table["datasets"].iloc[0])
        axis.set_ylabel(f"mean score over {count} data sets" if count > 1 else "score")
        said = f"{'W' if over == 'target' else 'target'} = {fixed:,.0f}" if fixed == fixed else ""
        axis.set_title(", ".join(part for part in (get_task(str(task)).label, str(model), said) if part), fontsize=10)
        tidy(axis)
    figure.legend(used.values(), used.keys(), fontsize=8, frameon=False, loc="outside right center")
    devices = ", ".join(trends["device"].dropna().unique())
    hollow = "" if trends["complete"].all() else " Hollow: of a part of the records."
    write_caption(figure, f"{devices or 'Device not known'}. Bars: 95 % intervals of the means.{hollow}")
    return figure


def _line(axis: Axes, method: str, points: pd.DataFrame, over: str, beside: float) -> Any:
    best = points.loc[points.groupby(over)["score"].idxmax()].sort_values(over)
    style = style_of(method)
    bars = best.dropna(subset=["low", "high"])
    at = best[over] / KILO + beside
    axis.vlines(at[bars.index], bars["low"], bars["high"], color=style.colour, linewidth=1.1, alpha=0.6)
    drawn: dict[str, Any] = {"color": style.colour, "marker": style.marker}
    (line,) = axis.plot(at, best["score"], linewidth=1.6, **drawn)
    hollow = best[~best["complete"]]
    axis.plot(at[hollow.index], hollow["score"], linestyle="none", markerfacecolor="white", **drawn)
    return line


def _level(axis: Axes, points: pd.DataFrame) -> Any:
    """A score that no window changes, with its interval as a band."""
    best, style = points.sort_values("score").iloc[-1], style_of(Original.name)
    if best["low"] == best["low"]:
        axis.axhspan(best["low"], best["high"], color=style.colour, alpha=0.08, linewidth=0)
    return axis.axhline(best["score"], color=style.colour, linewidth=1.4, linestyle=DASHES)
