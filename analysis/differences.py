"""Differences between attention maps, grouped by the distance between query and key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

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
