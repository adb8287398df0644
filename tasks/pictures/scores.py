"""Scores by data set with their 95 % intervals, and their means: a mark per experiment.

The means stand on top, a row for each experiment, so that its label says what its mark is below. There is a row for
each data set, in which experiments stand below each other in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.pictures import style
from tasks.results import RESULT_FILE, Experiment, Score

if TYPE_CHECKING:
    from tasks.base import Task

COLUMNS = 3
"""At most so many stacks of data sets beside each other."""
TALLEST = 9.0
"""Inches of a stack, before there is another."""
MEAN_ROW = 0.24
"""Inches of an experiment's row among the means."""
LABEL_CHARACTERS, LABEL_INCHES = 25, 0.075
"""Of an experiment's label for which there is room, and the width of each more."""
NO_SCORE = Score(None)


@dataclass(frozen=True)
class _Member:
    """An experiment in the picture. look: keywords of its marks. summary: its mean, or its only score."""

    label: str
    look: Mapping[str, Any]
    scores: Mapping[str, Score]
    summary: Score


def draw_scores(task: Task, experiments: Sequence[Experiment]) -> Figure | None:
    """Every score of each experiment, and what `task` averages of them; None where no experiment has a score."""
    found = [(experiment, _known(experiment.scores.get(RESULT_FILE, {}))) for experiment in experiments]
    found = [(experiment, scores) for experiment, scores in found if scores]
    if not found:
        return None
    names = list(dict.fromkeys(name for _, scores in found for name in scores))
    members = _members(task, [experiment for experiment, _ in found], [scores for _, scores in found], len(names) == 1)
    with_means = any(member.summary.score is not None for member in members)
    row = max(0.22, 0.08 + 0.1 * len(members))
    stacks = 0 if len(names) == 1 else min(COLUMNS, len(names), math.ceil(row * len(names) / TALLEST))
    deep = math.ceil(len(names) / stacks) if stacks else 0
    heights = [0.75 + MEAN_ROW * len(members)] * with_means + [0.65 + row * deep] * (stacks > 0)
    beside = LABEL_INCHES * max(0, max(len(member.label) for member in members) - LABEL_CHARACTERS)
    figure = style.new_figure(4.4 + 3.2 * max(1, stacks) + beside, 0.3 + sum(heights))
    grid = figure.add_gridspec(len(heights), max(1, stacks), height_ratios=heights)
    ends = _ends(score for member in members for score in (*member.scores.values(), member.summary))
    if with_means:
        axis = figure.add_subplot(grid[0, :])
        _draw_means(axis, members, task.digits)
        axis.set_title(
            f"{task.label}: {'mean of the scores below' if stacks else style.plain(names[0])}", fontsize=10, loc="left"
        )
        axis.set_xlim(ends)
        if not stacks:
            axis.set_xlabel("score")
    for nth in range(stacks):
        axis = figure.add_subplot(grid[-1, nth])
        _draw_stack(axis, members, names[nth * deep : (nth + 1) * deep], deep)
        axis.set_xlim(ends)
    if not with_means:
        axis.set_title(task.label, fontsize=10, loc="left")
        handles, labels = axis.get_legend_handles_labels()
        marks = dict(zip(labels, handles, strict=True))  # an experiment has one in each row
        axis.legend(
            marks.values(), marks.keys(), fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
        )
    experiments = [experiment for experiment, _ in found]
    style.write_caption(figure, style.caption_of(experiments, *_notes(members, stacks > 0)))
    return figure


def _known(scores: Mapping[str, Score]) -> dict[str, Score]:
    return {name: score for name, score in scores.items() if score.score is not None}


def _members(
    task: Task, experiments: Sequence[Experiment], scores: Sequence[Mapping[str, Score]], single: bool
) -> list[_Member]:
    return [
        _Member(
            label,
            {
                "color": (look := style.style_of(experiment.method)).colour,
                "marker": look.marker,
                **fill,
                "markersize": 6 if len(experiments) <= 8 else 4.5,
                "elinewidth": 1.1,
                "linestyle": "none",
            },
            its_scores,
            next(iter(its_scores.values())) if single else task.average(its_scores) or NO_SCORE,
        )
        for experiment, its_scores, label, fill in zip(
            experiments, scores, style.labels_of(experiments), style.fills_of(experiments), strict=True
        )
    ]


def _draw_means(axis: Axes, members: Sequence[_Member], digits: int) -> None:
    """A row per experiment with its label at the left and its mean in words at the right."""
    counts = {member.summary.count for member in members}
    several = len({len(member.scores) for member in members}) > 1
    for row, member in enumerate(members):
        if member.summary.score is None:
            continue
        _mark(axis, member.summary, row, member)
        text = member.summary.text(digits) + (f" (of {member.summary.count})" if several and len(counts) > 1 else "")
        axis.annotate(text, (1, row), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
                      fontsize=8, va="center", annotation_clip=False)  # fmt: skip
    axis.set_yticks(range(len(members)), [member.label for member in members], fontsize=8)
    axis.set_ylim(len(members) - 0.4, -0.6)
    style.tidy(axis, grid="x")


def _draw_stack(axis: Axes, members: Sequence[_Member], names: Sequence[str], deep: int) -> None:
    """Rows of data sets, with the number of records where all experiments have as many."""
    for row, name in enumerate(names):
        if row % 2 == 0:
            axis.axhspan(row - 0.5, row + 0.5, color=style.STRIPE, linewidth=0, zorder=0)
        for place, member in enumerate(members):
            if name in member.scores:
                _mark(axis, member.scores[name], row + 0.84 * ((place + 0.5) / len(members) - 0.5), member)
    axis.set_yticks(range(len(names)), [_row_label(name, members) for name in names], fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(deep - 0.5, -0.5)
    axis.set_xlabel("score")
    style.tidy(axis, grid="x")


def _mark(axis: Axes, score: Score, at: float, member: _Member) -> None:
    assert score.score is not None
    low, high = score.interval or (score.score, score.score)
    reach = [[max(0.0, score.score - low)], [max(0.0, high - score.score)]]
    axis.errorbar([score.score], [at], xerr=reach if score.interval else None, label=member.label, **member.look)


def _row_label(name: str, members: Sequence[_Member]) -> str:
    counts = {member.scores[name].count for member in members if name in member.scores}
    written = style.plain(name)
    return f"{written} ({counts.pop()})" if len(counts) == 1 and None not in counts else written


def _ends(scores: Iterable[Score]) -> tuple[float, float]:
    """Of the axis: from 0, or below the least, to beyond the largest."""
    ends = [end for score in scores if score.score is not None for end in (score.score, *(score.interval or ()))]
    low, high = min(0.0, *ends), max(0.0, *ends)
    if low == high:
        high = 1.0
    room = 0.03 * (high - low)
    return low - room, high + room


def _notes(members: Sequence[_Member], stacked: bool) -> list[str]:
    scores = [score for member in members for score in member.scores.values()]
    notes = ["Lines: 95 % intervals"] if any(score.interval for score in scores) else []
    if stacked and any(score.count is not None for score in scores):
        notes.append("in brackets: records")
    return ["; ".join(notes)]
