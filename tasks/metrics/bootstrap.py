"""Standard errors by resampling records with replacement (Efron, 1979), the same numbers in every run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RESAMPLES = 1000
SEED = 0


def bootstrap_stderr(
    scores: Sequence[float] | Sequence[Sequence[float]],
    statistic: Callable[[Tensor], Tensor] | None = None,
) -> float | None:
    """Standard error of the mean score, or of `statistic`, over records; None for fewer than two.

    `scores` has one number, or one row of k numbers, per record. `statistic` maps the means of all resamples,
    (RESAMPLES, k), to one number each, (RESAMPLES,).
    """
    import torch  # which takes seconds, and only scores need it

    values = torch.tensor(scores, dtype=torch.float64)
    if len(values) < 2:
        return None
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    means = values[drawn].mean(dim=1)  # (R,) or (R, k)
    return float((statistic(means) if statistic else means).std())
