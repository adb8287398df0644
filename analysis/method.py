"""The diagram of the method, drawn from the method's own code at a size where every token can be seen."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from analysis.positions import relative_distances
from models.DPI.help_funcs import construct_new_pi, squeeze
from models.DPI.methods import Rope
from models.DPI.methods.base import frequencies_of
from models.DPI.methods.dpi import DPI
from tasks.pictures.style import DASHES, WINDOW_COLOUR, new_figure, tidy

HEAD = DPI.colour
TAIL = "#4D4D4D"
PALE_HEAD, PALE_TAIL = "#F8D9C4", "#E3E3E3"
WINDOW, LOCAL_WINDOW, LENGTH = 8, 4, 14


def draw() -> Figure:
    """Three panels: positions of a prompt, the interpolated logit, and the two bands over queries and keys."""
    figure = new_figure(13.6, 4.4)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 0.9, 1.0))
    _positions(left)
    _interpolation(middle)
    _bands(right)
    return figure


def _positions(axis: Axes) -> None:
    """True positions above, GALI's below."""
    positions = construct_new_pi(LENGTH, WINDOW, LOCAL_WINDOW)
    s, head = (int(x) for x in squeeze(torch.tensor(LENGTH), WINDOW, LOCAL_WINDOW))
    for index, position in enumerate(positions.tolist()):
        colour = HEAD if index < head else TAIL
        axis.plot([index, position], [1, 0], color=colour, linewidth=1.1, alpha=0.55, zorder=1)
        axis.plot(position, 0, "o", color=colour, markersize=6, zorder=3)
        unseen = index >= WINDOW
        axis.plot(index, 1, "o", markersize=12, zorder=3, markeredgewidth=1.3, markerfacecolor="white",
                  markeredgecolor=WINDOW_COLOUR if unseen else "#222222")  # fmt: skip
        axis.annotate(str(index), (index, 1), ha="center", va="center", fontsize=8, zorder=4,
                      color=WINDOW_COLOUR if unseen else "#222222")  # fmt: skip
    axis.plot([0, WINDOW - 1], [0, 0], color="#222222", linewidth=0.8, zorder=0)
    for position in range(WINDOW):
        axis.plot([position] * 2, [-0.05, 0.05], color="#222222", linewidth=0.8, zorder=0)
        axis.annotate(str(position), (position, -0.06), ha="center", va="top", fontsize=8)
    axis.plot([WINDOW - 0.5] * 2, [-0.2, 1.22], color=WINDOW_COLOUR, linewidth=1.2, linestyle=DASHES)
    axis.annotate(f"window W = {WINDOW}", (WINDOW - 0.35, -0.2), fontsize=8, color=WINDOW_COLOUR, va="bottom")
    axis.annotate("token", (-0.6, 1), ha="right", va="center", fontsize=9)
    axis.annotate("position", (-0.6, 0), ha="right", va="center", fontsize=9)
    axis.annotate("never seen in training", ((WINDOW + LENGTH - 1) / 2, 1.14), ha="center", fontsize=8,
                  color=WINDOW_COLOUR)  # fmt: skip
    axis.annotate(f"head: {head} tokens at j/{s}", (0, -0.36), fontsize=9, color=HEAD)
    axis.annotate(f"tail: {LENGTH - head} tokens at integers", (4.9, -0.36), fontsize=9, color=TAIL)
    axis.set_title(f"1. Positions of {LENGTH} tokens: squeeze the head just enough", fontsize=10)
    axis.set_xlim(-2.6, LENGTH - 0.3)
    axis.set_ylim(-0.5, 1.35)
    axis.axis("off")


def _interpolation(axis: Axes) -> None:
    """One logit between two integer distances."""
    low, weight = 2, 2 / 3
    fine = torch.linspace(0.4, 4.6, 200)

    def logit(distance: torch.Tensor) -> torch.Tensor:
        return (1.9 * distance + 1.25).cos() + 0.25 * (0.3 * distance).cos()

    ends = logit(torch.tensor([float(low), low + 1.0])).tolist()
    mixed = (1 - weight) * ends[0] + weight * ends[1]
    axis.plot(fine.numpy(), logit(fine).numpy(), color="#0072B2", linewidth=1.2, label="rotation by a fraction")
    whole = torch.arange(1.0, 5.0)
    axis.plot(
        whole.numpy(),
        logit(whole).numpy(),
        "o",
        color="#222222",
        markersize=6,
        label="integer distances, seen in training",
    )
    axis.plot([low, low + 1], ends, color=HEAD, linewidth=1.8)
    axis.plot(low + weight, mixed, "D", color=HEAD, markersize=7, label="GALI: (1 − w) · left + w · right")
    bottom = float(logit(fine).min()) - 0.35
    axis.plot([low + weight] * 2, [bottom, mixed], color=HEAD, linewidth=0.9, linestyle=":")
    axis.annotate("", (low, bottom + 0.12), (low + weight, bottom + 0.12), arrowprops={"arrowstyle": "<->", "lw": 0.9})
    axis.annotate("w", (low + weight / 2, bottom + 0.16), ha="center", va="bottom", fontsize=9)
    axis.set_xticks([low, low + 1], ["⌈p$_i$⌉ − ⌈p$_j$⌉", "⌈p$_i$⌉ − ⌊p$_j$⌋"], fontsize=9)
    axis.set_yticks([])
    axis.set_ylim(bottom, 2.55)
    axis.set_xlabel("relative distance")
    axis.set_ylabel("attention logit")
    axis.set_title("2. Logits there: interpolate between neighbours", fontsize=10)
    axis.legend(fontsize=8, frameon=False, loc="upper center")
    tidy(axis)


def _bands(axis: Axes) -> None:
    """The distance between every query and key of a prompt whose tokens were generated one by one."""
    rope = Rope(frequencies_of(10_000.0, 8), WINDOW)
    found = relative_distances(DPI(chunk_coe=1, local_window=LOCAL_WINDOW), rope, LENGTH, LENGTH)
    # Within the window the only band is the model's own: a tail without a head.
    head = (found.band == 0) & (torch.arange(LENGTH)[:, None] >= WINDOW)
    kind = torch.where(found.band < 0, float("nan"), torch.where(head, 0.0, 1.0))
    axis.imshow(kind.numpy(), cmap=ListedColormap([PALE_HEAD, PALE_TAIL]), vmin=0, vmax=1, interpolation="nearest")
    for i in range(LENGTH):
        for j in range(i + 1):
            value = float(found.distance[i, j])
            axis.annotate(f"{value:g}" if value == int(value) else f"{value:.1f}", (j, i), ha="center", va="center",
                          fontsize=6.5, color=HEAD if head[i, j] else TAIL)  # fmt: skip
    axis.plot([-0.5, WINDOW + 0.2], [WINDOW - 0.5] * 2, color=WINDOW_COLOUR, linewidth=1.2, linestyle=DASHES)
    axis.annotate(f"i = W = {WINDOW}", (WINDOW + 0.3, WINDOW - 0.5), fontsize=8, color=WINDOW_COLOUR, va="center")
    axis.annotate("head: blended key table", (LENGTH - 0.6, 0.2), ha="right", fontsize=9, color=HEAD)
    axis.annotate("tail: the model's own table", (LENGTH - 0.6, 1.3), ha="right", fontsize=9, color=TAIL)
    axis.set_xticks(range(0, LENGTH, 2))
    axis.set_yticks(range(0, LENGTH, 2))
    axis.tick_params(labelsize=8)
    axis.set_xlabel("key j")
    axis.set_ylabel("query i")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title("3. Two bands: the distances that the model sees", fontsize=10)
