"""Mean scores over target lengths, from whatever experiments a results folder holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.pictures import panels
from pipeline import store
from pipeline.report import read_experiment
from tasks import get_task
from tasks.errors import UserError
from tasks.pictures.style import style_of, tidy
from tasks.results import RESULT_FILE

COLUMNS = ["task", "model", "method", "experiment", "target", "score", "datasets", "complete", "low", "high"]
BESIDE = 0.008
"""From one method's intervals to the next, as a part of the longest target."""
NOT_KNOWN = (math.nan, math.nan)


def collect_trends(results: Path, task_name: str) -> pd.DataFrame:
    """Scored experiments of a benchmark that know their target: one row each, `score` the mean over `datasets`.

    complete: whether every record has a prediction. low, high: the mean's 95 % interval, NaN where it is not known.
    """
    task = get_task(task_name)
    try:
        folders = store.list_experiments(results, task)
    except UserError:  # none yet
        folders = []
    rows = []
    for folder in folders:
        experiment = read_experiment(folder, task)
        mean = task.average(experiment.scores.get(RESULT_FILE, {}))
        if mean is None or experiment.target is None:
            continue
        model = (experiment.model or "").rstrip("/").split("/")[-1]
        head = (task_name, model, experiment.method, experiment.name, experiment.target)
        rows.append((*head, mean.score, mean.count, not experiment.needs_mark, *(mean.interval or NOT_KNOWN)))
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("target", kind="stable", ignore_index=True)


def draw(trends: pd.DataFrame) -> Figure:
    """Mean scores over target lengths: a panel per benchmark and model, a line per method, its best experiments.

    Points of incomplete experiments are hollow. Bars are 95 % intervals of the means, a little beside each other.
    """
    tables = list(trends.groupby(["task", "model"], sort=False))
    figure, axes = panels(len(tables), 3, (4.4, 3.4), (1.6, 0.4))
    used = {}
    for axis, ((task, model), table) in zip(axes, tables, strict=True):
        groups = list(table.groupby("method", sort=False))
        targets = sorted(set(table["target"] / 1024))
        for nth, (method, points) in enumerate(groups):
            best = points.loc[points.groupby("target")["score"].idxmax()]
            style = style_of(str(method))
            bars = best.dropna(subset=["low", "high"])
            at = bars["target"] / 1024 + BESIDE * targets[-1] * (nth - (len(groups) - 1) / 2)
            axis.vlines(at, bars["low"], bars["high"], color=style.colour, linewidth=1.1, alpha=0.6)
            drawn: dict[str, Any] = {"color": style.colour, "marker": style.marker}
            (used[style.label],) = axis.plot(best["target"] / 1024, best["score"], linewidth=1.6, **drawn)
            hollow = best[~best["complete"]]
            axis.plot(hollow["target"] / 1024, hollow["score"], linestyle="none", markerfacecolor="white", **drawn)
        axis.set_xticks(targets)
        axis.set_xlabel("target length, × 1,024 tokens")
        axis.set_ylabel("mean score over data sets")
        axis.set_title(f"{get_task(str(task)).label}, {model}", fontsize=10)
        tidy(axis)
    figure.legend(used.values(), used.keys(), fontsize=8, frameon=False, loc="outside right center")
    return figure
