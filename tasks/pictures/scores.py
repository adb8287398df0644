"""Mean scores: a row per experiment, the best one on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from tasks.pictures import style
from tasks.results import RESULT_FILE, Experiment, Score

if TYPE_CHECKING:
    from tasks.base import Task


def draw_scores(task: Task, experiments: Sequence[Experiment]) -> Figure | None:
    """What `task` averages of each experiment, or its only score, with error bars where standard errors are known.

    None where no experiment has such a score.
    """
    found = [(_summary(task, experiment), experiment) for experiment in experiments]
    ranked = sorted(
        ((score.score, score.stderr, experiment) for score, experiment in found if score and score.score is not None),
        key=lambda row: (row[0], row[2].name),
    )
    if not ranked:
        return None
    figure = style.new_figure(7.2, 1.1 + 0.3 * len(ranked))
    axis = figure.subplots()
    used: dict[str, Artist] = {}
    for row, (mean, stderr, experiment) in enumerate(ranked):
        look = style.style_of(experiment.method)
        axis.plot([0, mean], [row, row], color=look.colour, linewidth=1.2, alpha=0.5)
        if stderr is not None:
            axis.errorbar(mean, row, xerr=stderr, color=look.colour, linewidth=1.2, capsize=3)
        (used[look.label],) = axis.plot(
            mean, row, color=look.colour, marker=look.marker, markersize=7, linestyle="none", label=look.label
        )
        end = (mean + (stderr or 0), row)
        axis.annotate(f"{mean:.2f}", end, xytext=(7, 0), textcoords="offset points", fontsize=8, va="center")
    titles = [style.title_of(experiment, separator=" ") for *_, experiment in ranked]
    axis.set_yticks(range(len(ranked)), titles, fontsize=8)
    axis.set_ylim(-0.6, len(ranked) - 0.4)
    axis.set_xlim(0, max(1e-9, *(mean + (stderr or 0) for mean, stderr, _ in ranked)) * 1.12)
    axis.set_xlabel("mean score over data sets")
    style.tidy(axis, grid="x")
    axis.legend(used.values(), used.keys(), fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _summary(task: Task, experiment: Experiment) -> Score | None:
    """The mean that the benchmark has, or its score where it has one alone."""
    columns = task.columns(RESULT_FILE, experiment.results)
    mean = task.average(columns)
    return next(iter(columns.values())) if mean is None and len(columns) == 1 else mean
