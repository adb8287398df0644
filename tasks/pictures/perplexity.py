"""Perplexity over length: a panel for each model and window, a curve per experiment."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullLocator

from tasks.pictures import style
from tasks.results import Experiment, Score, detailed

COLUMNS = 3
MARKERS = 8
"""About so many on a curve."""
TICKS = 10
"""About so many on an axis; lengths in units of 1,024 are short and may be more."""
MOST_ROOM = 2.0
"""Intervals of few texts are wide: so many times below and above the curves the axis may go for them."""
FLAT = 3.0
"""Curves within so many times the least perplexity lie flat beside one that goes to its square."""
WIDEST, NARROWEST, STEP = 4.4, 1.2, 0.5
"""Of the curves, in points, from the first drawn to the last."""
LEGEND = 44
"""Characters in a line of the legend, which stands beside the axis: a longer one would leave that no room."""


def draw_perplexity(experiments: Sequence[Experiment]) -> Figure | None:
    """Curves of the experiments that have a perplexity at some length; None if none has."""
    panels: dict[tuple[str, int], list[Experiment]] = {}
    for experiment in experiments:
        if experiment.result:
            panels.setdefault((experiment.model or "", experiment.window or 0), []).append(experiment)
    if not panels:
        return None
    drawn = [(*key, shown, near) for key, members in panels.items() for shown, near in _views(members)]
    columns = min(COLUMNS, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = style.new_figure(1 + 5.6 * columns, 0.9 + 4.2 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    for axis, (model, window, members, near) in zip(axes.flat, drawn, strict=False):
        _curves(axis, members, window, with_intervals=not near)
        parts = (style.short_model(model), f"W = {window:,}" if window else "", "the lowest curves" if near else "")
        axis.set_title(style.plain(", ".join(part for part in parts if part)), fontsize=10, color=style.DARK)
        axis.set_ylabel("perplexity")
    counts = {score.count for experiment in experiments for score in _scores(experiment) if score.interval}
    texts = " and ".join(str(count) for count in sorted(count for count in counts if count))
    note = f"Bars behind the curves' ends: 95 % intervals over {texts} texts" if texts else ""
    style.write_caption(figure, style.caption_of([one for members in panels.values() for one in members], note))
    return figure


def _views(members: Sequence[Experiment]) -> list[tuple[Sequence[Experiment], bool]]:
    """All curves; and, where some rise so far that the others lie flat, these once more (True)."""
    highest = [max(member.result.values()) for member in members]
    least = min(value for member in members for value in member.result.values())
    low = [member for member, value in zip(members, highest, strict=True) if value < FLAT * least]
    hidden = len(low) > 1 and max(highest) > FLAT**2 * least
    return [(members, False), *([(low, True)] if hidden else [])]


def _curves(axis: Axes, experiments: Sequence[Experiment], window: int, *, with_intervals: bool) -> None:
    """One panel. Experiments of one method have its colour and differ in their lines and in how markers are filled."""
    settings: dict[str | None, int] = {}
    looks = zip(experiments, style.labels_of(experiments, ("target",)), style.fills_of(experiments), strict=True)
    lengths = sorted({int(length) for experiment in experiments for length in experiment.result})
    for index, (experiment, label, fill) in enumerate(looks):
        look = style.style_of(experiment.method)
        nth = settings[experiment.method] = settings.get(experiment.method, -1) + 1
        points = sorted((int(length), value) for length, value in experiment.result.items())
        every = max(1, len(points) // MARKERS)
        # Curves that fall together stay visible: later ones are narrower, and markers are staggered.
        axis.plot(
            *zip(*points, strict=True), color=look.colour, marker=look.marker, markersize=5, **fill,
            linewidth=max(NARROWEST, WIDEST - index * STEP), zorder=2 + 0.01 * index,
            markevery=(index % every, every), linestyle=style.LINE_STYLES[nth % len(style.LINE_STYLES)],
            label="\n".join(textwrap.wrap(label, LEGEND)),
        )  # fmt: skip
    ends = _intervals(axis, experiments, lengths[-1] - lengths[0] or lengths[-1]) if with_intervals else []
    _scale_perplexities(axis, [value for one in experiments for value in one.result.values()], ends)
    _scale_lengths(axis, lengths, window)
    style.tidy(axis)
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _intervals(axis: Axes, experiments: Sequence[Experiment], span: float) -> list[float]:
    """Of each curve's last point, behind it and beside each other; returns their ends."""
    ends: list[float] = []
    for index, experiment in enumerate(experiments):
        last = _scores(experiment)[-1]
        if last.interval is not None:
            at = max(map(int, experiment.result)) + span * (0.03 + 0.015 * index)
            axis.plot([at, at], last.interval, color=style.style_of(experiment.method).colour, linewidth=1.4, zorder=2)
            ends += last.interval
    return ends


def _scale_perplexities(axis: Axes, values: Sequence[float], ends: Sequence[float]) -> None:
    """The curves fill the axis; intervals may widen it to a certain degree. Ticks enough to read a value off."""
    low, high = min(values), max(values)
    low, high = max(low / MOST_ROOM, min(low, *ends, high)), min(high * MOST_ROOM, max(high, *ends, low))
    if max(values) > 4 * min(values):
        axis.set_yscale("log")
        between = (1.0, 2.0, 5.0) if high > 30 * low else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
        axis.yaxis.set_major_locator(LogLocator(subs=between))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.15g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_ylim(low / 1.1, high * 1.1)
    else:
        room = 0.06 * (high - low) or 0.05 * high
        axis.set_ylim(low - room, high + room)
        axis.yaxis.set_major_locator(MaxNLocator(TICKS))


def _scale_lengths(axis: Axes, lengths: Sequence[int], window: int) -> None:
    """From 0; a window far beyond all lengths is only named."""
    longest = lengths[-1]
    right = max(axis.get_xlim()[1], 1.03 * longest)
    beyond = window > 2 * longest
    axis.set_xlim(0, right if beyond else max(right, 1.05 * window))
    unit, name = (1024, "× 1,024") if all(length % 1024 == 0 for length in lengths) else (1000, "thousand")
    if unit == 1024:
        steps = axis.get_xlim()[1] / unit / (2 * TICKS)
        axis.xaxis.set_major_locator(MultipleLocator(unit * 2 ** max(0, math.ceil(math.log2(steps)))))
    else:
        axis.xaxis.set_major_locator(MaxNLocator(TICKS))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens / unit:g}"))
    axis.set_xlabel(f"length, {name} tokens")
    if beyond:
        style.name_window_beyond(axis, window)
    elif window:
        style.mark_window(axis, window)


def _scores(experiment: Experiment) -> list[Score]:
    """By length, with what the details say."""
    found = sorted((int(length), value) for length, value in experiment.result.items())
    return [detailed(value, experiment.results, "steps", str(length), "perplexity") for length, value in found]
