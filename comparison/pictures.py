"""Two pictures: loss against retrieval with the frontier, and passkeys by length and depth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comparison.frontier import Point, frontier
from comparison.results import Comparison, mean
from tasks.metrics.summary import proportion
from tasks.pictures import style
from tasks.pictures.needle import draw_needles
from tasks.results import COMPLETE, DETAIL_FILE, RESULT_FILE, Experiment

ROOM = 4.0
"""The axis of losses reaches so many times as far from the lowest as the middle one does."""
_LEGEND_LINE = 0.17
"""Inches of a setting's line in the legend."""


def draw_frontier(found: Comparison) -> Figure | None:
    """Each reported setting as a point, and a line through those that no other beats; None without complete ones.

    Losses far beyond the others, as the original model has, stand at the right edge with their numbers.
    """
    points = found.points(found.half(chooses=False), found.reported())
    if not points:
        return None
    figure = style.new_figure(9.5, max(5.5, _LEGEND_LINE * (len(points) + 3)))
    axis = figure.subplots()
    losses = sorted(point.loss for _, point in points)
    least, middle = losses[0], losses[len(losses) // 2]
    furthest = min(losses[-1], least + ROOM * max(middle - least, 0.002))
    shown = [(key, Point(min(point.loss, furthest), point.retrieval)) for key, point in points]
    edge = frontier(points)
    axis.plot(
        [min(point.loss, furthest) for _, point in edge], [point.retrieval for _, point in edge],
        color=style.QUIET, linewidth=1.2, linestyle=style.DASHES, zorder=1, label="nothing is better in both",
    )  # fmt: skip
    seen: dict[str, int] = defaultdict(int)
    for (key, point), (_, true) in zip(shown, points, strict=True):
        _draw_point(axis, found, key, point, true, seen)
    axis.set_xlabel("mean loss beyond the window, nats (better to the left)")
    axis.set_ylabel("retrieval, share of answers (better above)")
    style.tidy(axis)
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=7, frameon=False)
    style.write_caption(figure, style.caption_of(list(_experiments(found, [])), _halves(found)))
    return figure


def _draw_point(axis: Axes, found: Comparison, key: str, point: Point, true: Point, seen: dict[str, int]) -> None:
    setting = found.settings[key].setting
    how = style.style_of(setting.method)
    fill = style.FILLS[seen[setting.method] % len(style.FILLS)]
    seen[setting.method] += 1
    axis.plot(
        point.loss, point.retrieval, color=how.colour, marker=how.marker, markersize=8, linestyle="none",
        label=style.plain(setting.label), **fill,
    )  # fmt: skip
    if setting.measured:
        axis.annotate(setting.label, (point.loss, point.retrieval), xytext=(8, -3), textcoords="offset points",
                      fontsize=8, fontweight="bold", color=how.colour)  # fmt: skip
    if point.loss < true.loss:
        axis.annotate(f"{true.loss:.2f} →", (point.loss, point.retrieval), xytext=(-6, 5), ha="right",
                      textcoords="offset points", fontsize=7, color=style.DARK)  # fmt: skip


def draw_depths(found: Comparison) -> Figure | None:
    """Passkeys found in both haystacks by length and depth, a panel for each reported setting; None without any."""
    experiments = [one for one in _experiments(found, found.reported()) if one.result]
    return draw_needles(experiments, digits=2)


def _experiments(found: Comparison, keys: Sequence[str]) -> Iterator[Experiment]:
    """Settings as the needle test's picture wants them; one without results, for a caption, where there are no keys."""
    items = [item for item in found.half(chooses=False) if item.probe in ("passkey", "passkey_text")]
    request, device = found.request, found.record["device"]
    if not keys:
        yield Experiment("", None, request["model"], request["window"], request["target"], {}, COMPLETE, {}, {}, device)
    for key in keys:
        one = found.settings[key]
        cells: dict[tuple[int, float], list[float]] = defaultdict(list)
        for item in items:
            if item.id in one.scores:
                cells[item.length, 100 * (item.depth or 0.0)].append(one.scores[item.id])
        result = [
            {"context_length": length, "depth_percent": depth, "score": mean(marks)}
            for (length, depth), marks in sorted(cells.items())
        ]
        marks = [mark for own in cells.values() for mark in own]
        results: dict[str, Any] = {RESULT_FILE: result}
        if marks and not math.isnan(sum(marks)):
            results[DETAIL_FILE] = {"overall": asdict(proportion(marks))}
        yield Experiment(
            one.setting.label, one.setting.method, request["model"], one.setting.window, request["target"],
            one.setting.params, COMPLETE, results, {}, device,
        )  # fmt: skip


def _halves(found: Comparison) -> str:
    return "Settings were chosen on other texts and prompts" if found.tuned else ""
