"""Attention probabilities and logits averaged over heads and layers, and how methods' differ from the original's.

`output_attentions=True` holds [layer, batch, head, q, k] at once: 30 layers of 9 heads at 8,192 tokens are 72 GB. Here
those of a block of queries are formed, layer by layer while the model runs in O(n) memory, and added up: the memory is
that of the average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from analysis.pictures import panels
from models.DPI.attention.bands import Plan
from models.DPI.attention.reference import masked_logits_of, probabilities_of
from models.DPI.patches.Llama import observe
from tasks.pictures.style import DARK, DASHES, MAP, WINDOW_COLOUR, mark_window, new_figure, style_of, tidy

BLOCK = 256
"""Queries whose probabilities or logits exist at a time, for all heads of one layer."""


def mean_attention(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    block: int = BLOCK,
    progress: bool = False,
) -> Tensor:
    """The average over layers and heads of what each query pays to each key.

    model: with a method installed; it decides how queries and keys are rotated. input_ids: (B, T). attention_mask:
    (B, T), 0 for padding.
    Returns (B, T, T) fp32 on the model's device: rows sum to 1 and are 0 above the diagonal; rows of padding are 0.
    Raises ValueError if the model has no method.
    """
    return _mean(probabilities_of, 0.0, model, input_ids, attention_mask, block, progress)


def mean_logits(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    block: int = BLOCK,
    progress: bool = False,
) -> Tensor:
    """The average over layers and heads of the logits, which the softmax of each head gets: scaled, with noise.

    Arguments and errors as of `mean_attention`.
    Returns (B, T, T) fp32 on the model's device: -inf where a query does not see a key, which is above the diagonal
    and where either is padding.
    """
    return _mean(masked_logits_of, -math.inf, model, input_ids, attention_mask, block, progress)


def _mean(
    measure: Callable[..., Tensor],
    unseen: float,
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    block: int,
    progress: bool,
) -> Tensor:
    """The average of what `measure` finds of each head, (B, H, block, n) at a time; `unseen` where it finds nothing."""
    layers = model.config.num_hidden_layers
    with tqdm(total=layers, unit="layer", leave=False, disable=not progress) as bar:
        average = _Sum(measure, unseen, block, bar)
        with observe(model, average), torch.no_grad():
            model.base_model(input_ids, attention_mask=attention_mask, use_cache=False)
    assert average.total is not None
    return average.total.div_(layers * model.config.num_attention_heads)


class _Sum:
    """The observer: adds what is measured of a layer's heads to one map."""

    def __init__(self, measure: Callable[..., Tensor], unseen: float, block: int, bar: tqdm) -> None:
        self.measure = measure
        self.unseen = unseen
        self.block = block
        self.bar = bar
        self.total: Tensor | None = None

    def __call__(self, layer: int, query: Tensor, key: Tensor, plan: Plan, scaling: float) -> None:
        first_layer = self.total is None
        if self.total is None:
            self.total = torch.full((len(query), query.shape[2], key.shape[2]), self.unseen, device=query.device)
        for row in plan.rows:
            members = list(row.rows)
            q, k = query[members], key[members, :, row.left : row.left + row.length]
            # Query i of a row lies at i - past on the axis of queries.
            past = row.segments[0].first - row.first_query
            for segment in row.segments:
                for first in range(segment.first, segment.last, self.block):
                    last = min(first + self.block, segment.last)
                    at = slice(first - past, last - past)
                    part = self.measure(
                        q[:, :, at],
                        k,
                        segment,
                        scaling=scaling,
                        noise=plan.noise,
                        layer=layer,
                        rows=slice(first - segment.first, last - segment.first),
                    )  # (B, H, block, n)
                    seen = slice(row.left, row.left + part.shape[-1])
                    of_heads = part.sum(1, dtype=torch.float32)
                    if first_layer:
                        self.total[members, at, seen] = of_heads
                    else:
                        self.total[members, at, seen] += of_heads
        self.bar.update()


def row_entropy(attention: Tensor) -> Tensor:
    """Entropy of each query's row in nats: (..., T, N) -> (..., T). A uniform row over n keys has ln n."""
    entropy: Tensor = torch.special.entr(attention).sum(-1)
    return entropy


def thumbnail(attention: Tensor, cells: int) -> Tensor:
    """A map for a picture: (T, N) -> at most cells × cells, each the mean of a square of entries."""
    side = -(-attention.shape[-1] // cells)
    small: Tensor = torch.nn.functional.avg_pool2d(attention[None], side, ceil_mode=True)
    return small[0]


def logit_thumbnail(logits: Tensor, cells: int) -> Tensor:
    """The same of logits: the mean of those entries of a square that are seen, NaN where none is."""
    seen = logits.isfinite()
    return thumbnail(logits.where(seen, 0.0), cells) / thumbnail(seen.to(logits), cells)


# Of the ratio between two maps.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def distance_groups(length: int, window: int, per_window: int = 2) -> list[tuple[int, int]]:
    """Groups [low, high) of distances, W / per_window wide, up to the longest distance."""
    width = max(1, window // per_window)
    return [(low, min(low + width, length)) for low in range(0, length, width)]


def by_distance(original: Tensor, methods: Mapping[str, Tensor], groups: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """How far each method's map is from the original's, in each group of distances i − j.

    Maps: (T, T). Columns: method, low, high; `absolute`, the mean |difference| over the mean of the original in that
    group (1 is a difference as large as the attention itself); and the quantiles q5 … q95 of log10 of the ratio
    method / original, key by key.
    """
    i = torch.arange(original.shape[0], device=original.device)
    distance = i[:, None] - i
    rows = []
    for low, high in groups:
        inside = (distance >= low) & (distance < high)
        reference = original[inside]
        for name, attention in methods.items():
            found = attention[inside]
            ratio = (found.clamp(min=1e-30) / reference.clamp(min=1e-30)).log10()
            quantiles = [_quantile(ratio, q) for q in QUANTILES]
            absolute = float((found - reference).abs().mean() / reference.mean())
            rows.append((name, low, high, absolute, *quantiles))
    names = [f"q{round(100 * q)}" for q in QUANTILES]
    return pd.DataFrame(rows, columns=["method", "low", "high", "absolute", *names])


def _quantile(values: Tensor, q: float) -> float:
    """The value of that rank; `torch.quantile` refuses more than 16 million values."""
    rank = round(q * (values.numel() - 1))
    return float(values.kthvalue(rank + 1).values)


CELLS = 96
"""Side of a map in a picture; each cell is the mean of a square of entries."""
COLUMNS = 4
"""At most so many maps beside each other."""


def draw_maps(maps: Mapping[str, Tensor], window: int) -> Figure:
    """Maps (T, T) of methods on one logarithmic scale of probability. Beyond the dashed lines i or i − j passes W."""
    small = {name: thumbnail(attention, CELLS).cpu() for name, attention in maps.items()}
    small = {name: cells.masked_fill(cells == 0, math.nan) for name, cells in small.items()}
    lengths = {name: attention.shape[-1] for name, attention in maps.items()}
    return _draw(small, lengths, window, LogNorm, "attention probability,\nmean over heads and layers")


def draw_logit_maps(maps: Mapping[str, Tensor], window: int) -> Figure:
    """Maps (T, T) of methods' mean logits on one linear scale, with the same lines as `draw_maps`."""
    small = {name: logit_thumbnail(logits, CELLS).cpu() for name, logits in maps.items()}
    lengths = {name: logits.shape[-1] for name, logits in maps.items()}
    return _draw(small, lengths, window, Normalize, "attention logit,\nmean over heads and layers")


def _draw(
    small: Mapping[str, Tensor], lengths: Mapping[str, int], window: int, scale: type[Normalize], label: str
) -> Figure:
    """A panel per method. small: thumbnails, NaN where nothing is. lengths: T of the maps. scale: of the colours."""
    figure, axes = panels(len(small), COLUMNS, (2.75, 2.85), (0.9, 0.2), ("key j, tokens", "query i, tokens"))
    cells = next(iter(small.values()))
    values = cells[cells.isfinite()]
    norm = scale(float(values.quantile(0.02)), float(values.quantile(0.995)))
    for axis, name in zip(axes, small, strict=True):
        length = lengths[name]
        image = axis.imshow(
            small[name].numpy(), extent=(0, length, length, 0), norm=norm, cmap=MAP, interpolation="nearest"
        )
        axis.plot([0, length - window], [window, length], color=WINDOW_COLOUR, linewidth=1, linestyle=DASHES)
        axis.plot([0, window], [window, window], color=WINDOW_COLOUR, linewidth=1, linestyle=DASHES)
        axis.set_xlim(0, length)
        axis.set_ylim(length, 0)
        axis.annotate(f"i = W = {window:,}", (length, window), xytext=(-3, 0), textcoords="offset points", fontsize=8,
                      color=WINDOW_COLOUR, ha="right", va="center")  # fmt: skip
        axis.annotate("i − j = W", (length - window, length), xytext=(-14, 12), textcoords="offset points", fontsize=8,
                      color=WINDOW_COLOUR, ha="right", va="bottom",
                      bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"})  # fmt: skip
        axis.set_title(style_of(name).label, fontsize=10, color=DARK)
        axis.spines[:].set(color=style_of(name).colour, linewidth=2)
        axis.tick_params(labelsize=8)
    # The label must fit beside the bar, which beside one row of panels is short.
    bar = figure.colorbar(image, ax=axes, shrink=0.9 if len(small) <= COLUMNS else 0.6, pad=0.015, extend="both")
    bar.set_label(label, fontsize=9)
    return figure


def draw_entropies(entropies: Mapping[str, Tensor], original: str, window: int, smooth: int) -> Figure:
    """Two panels: the entropy of each query's row by method, and its difference to the method `original`.

    entropies: (T,) in nats. smooth: queries averaged for a point of a line.
    """
    figure = new_figure(11.6, 3.8)
    left, right = figure.subplots(1, 2)
    for name, entropy in entropies.items():
        style = style_of(name)
        at, values = _smoothed(entropy, smooth)
        _, reference = _smoothed(entropies[original], smooth)
        options = {"color": style.colour, "marker": style.marker, "markersize": 4, "markevery": 6, "linewidth": 1.5}
        left.plot(at, values, label=style.label, **options)
        if name != original:
            right.plot(at, values - reference, **options)
    right.axhline(0, color=style_of(original).colour, linewidth=1)
    left.set_ylabel("entropy of the row, nats")
    right.set_ylabel(f"difference to {style_of(original).label}, nats")
    for axis in (left, right):
        axis.set_xlabel("query i, tokens")
        mark_window(axis, window, top=False)
        tidy(axis)
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right center")
    return figure


def _smoothed(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Means of groups of `width` neighbours, and their middles."""
    groups = values[: len(values) // width * width].reshape(-1, width).double().cpu()
    middles = (groups.new_tensor(range(len(groups))) + 0.5) * width
    return middles, groups.mean(1)


def draw_differences(table: pd.DataFrame, window: int) -> Figure:
    """Bars and boxes over groups of distances, from `by_distance`; the window is a line."""
    figure = new_figure(9.6, 6.4)
    bars, boxes = figure.subplots(2, 1, sharex=True)
    methods = list(dict.fromkeys(table["method"]))
    groups = list(dict.fromkeys(zip(table["low"], table["high"], strict=True)))
    width = 0.84 / len(methods)
    for nth, method in enumerate(methods):
        rows = table[table["method"] == method]
        at = [group + (nth - (len(methods) - 1) / 2) * width for group in range(len(groups))]
        bars.bar(at, 100 * rows["absolute"], width=0.9 * width, color=style_of(method).colour)
        statistics = [
            {"whislo": row.q5, "q1": row.q25, "med": row.q50, "q3": row.q75, "whishi": row.q95}
            for row in rows.itertuples()
        ]
        boxes.bxp(
            statistics, positions=at, widths=0.8 * width, showfliers=False, patch_artist=True, manage_ticks=False,
            boxprops={"facecolor": style_of(method).colour, "linewidth": 0.5}, capprops={"linewidth": 0.6},
            medianprops={"color": "white", "linewidth": 1.2}, whiskerprops={"linewidth": 0.6},
        )  # fmt: skip
    bars.set_ylabel("mean |difference|,\n% of the original's attention")
    boxes.set_ylabel("method / original, key by key\n(box: quartiles, line: 5 to 95 %)")
    boxes.axhline(0, color="#4D4D4D", linewidth=0.9)
    low, high = boxes.get_ylim()
    ratios = [digit * 10.0**power for power in range(-9, 9) for digit in (1, 2, 5)]
    shown = [ratio for ratio in ratios if low < math.log10(ratio) < high]
    boxes.set_yticks([math.log10(ratio) for ratio in shown], [f"{ratio:g}" for ratio in shown])
    boxes.set_xticks(range(len(groups)), [f"{low:,}–{high - 1:,}" for low, high in groups], fontsize=8)
    boxes.set_xlabel("relative distance i − j, tokens")
    edge = next((n for n, (low, _) in enumerate(groups) if low >= window), len(groups)) - 0.5
    for axis in (bars, boxes):
        mark_window(axis, edge, label=f"W = {window:,}")
        tidy(axis, "y")
    handles = [Patch(color=style_of(method).colour, label=style_of(method).label) for method in methods]
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside right center")
    return figure
