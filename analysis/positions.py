"""The relative distance that a method shows the model, over queries i and keys j."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.DPI.methods import Method, Rope

SLOWEST = -1


@dataclass(frozen=True)
class Distances:
    """distance: (T, N) fp64, NaN where the query does not see the key. band: (T, N) int64, -1 there.

    queries, keys: indices of the rows and columns.
    """

    queries: Tensor
    keys: Tensor
    distance: Tensor
    band: Tensor


def relative_distances(method: Method, rope: Rope, length: int, cells: int, frequency: int = SLOWEST) -> Distances:
    """Distances of a prompt of `length` tokens, at `cells` evenly spaced queries and keys.

    The distance is the angle between query and key at one frequency over what the stock model turns in one position
    there. Methods that change positions have one distance at all frequencies; NTK and YaRN stretch the slow ones, so
    `frequency` (an index, fast to slow) is the slowest unless given.
    """
    index = torch.linspace(0, length - 1, min(cells, length)).round().long()
    distance = torch.full((len(index), len(index)), math.nan, dtype=torch.float64)
    band_of = torch.full(distance.shape, -1)
    own = rope.inv_freq[frequency].double()
    for segment in method.segments(rope, 0, length):
        rows = (index >= segment.first) & (index < segment.last)
        at = index[rows] - segment.first
        for number, band in enumerate(segment.bands):
            start, stop = band.start[at, None], band.stop[at, None]
            inside = (index >= start) & (index < stop)
            turned = band.query_positions[at, None] - band.keys(index)[None]
            turned = turned * (band.frequencies.inv_freq[frequency].double() / own)
            distance[rows] = torch.where(inside, turned, distance[rows])
            band_of[rows] = torch.where(inside, number, band_of[rows])
    return Distances(index, index, distance, band_of)
