"""Bands: what every method is, a few rotary tables and the region of (query, key) that each covers.

A band rotates the queries by one table and the keys by another, and covers, for query i, the keys
start(i) <= j < stop(i). One softmax runs over the union of a query's bands; a key in none of them is not seen. A
segment is a run of queries that share their key tables; a plan is the segments of every row of a batch. Indices are
those of a row's own tokens, padding not counted.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from models.DPI.attention.noise import Noise
from models.DPI.attention.prepared import (
    BackwardKey,
    KeyTiles,
    PrefillKey,
    PreparedPrefill,
    PreparedStep,
    StepShape,
)
from models.DPI.attention.tables import Frequencies, KeyPositions, KeyTable, rotate

# `Band.noise_period` of a band in which every key gets noise.
EVERY_KEY = 0


@dataclass(frozen=True, eq=False)
class Band:
    """One region of a segment.

    query_positions: fp64, positions of the segment's queries, (T,), or (T, rotary_dim/2) where frequencies differ.
    query_scale: factor on the part of the logits that rotates, a number or (T,). logit_scale: on all of it.
    keys: positions of the keys, a function of their index.
    start, stop: (T,) int64 on the CPU, the keys that each query sees in this band; neither ever falls from one
        query of a segment to the next.
    noise_period: keys j with j % noise_period != 0 get the plan's noise; EVERY_KEY, all of them; None, no key.
    """

    frequencies: Frequencies
    query_positions: Tensor
    keys: KeyPositions
    start: Tensor
    stop: Tensor
    query_scale: float | Tensor = 1.0
    noise_period: int | None = None
    logit_scale: float | Tensor = 1.0
    _query_tables: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @cached_property
    def table(self) -> KeyTable:
        """What rotates the keys."""
        return KeyTable(self.frequencies, self.keys)

    def query_tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the queries with both scales folded in, each (T, rotary_dim/2) fp32."""
        if device not in self._query_tables:
            scale = self.query_scale * self.logit_scale
            self._query_tables[device] = self.frequencies.tables(self.query_positions, device, scale=scale)
        return self._query_tables[device]

    def rotate_queries(self, q: Tensor, rows: slice = slice(None), back: bool = False) -> Tensor:
        """The segment's queries that `rows` picks, (..., T, head_dim), rotated and scaled; back: by the transpose.

        The transpose is the inverse only where nothing is scaled.
        """
        cos, sin = (table[rows] for table in self.query_tables(q.device))
        rest = self.logit_scale
        if isinstance(rest, Tensor):
            rest = rest[rows].to(q.device, torch.promote_types(q.dtype, torch.float32))[:, None]
        return rotate(q, cos, -sin if back else sin, rest)

    def scaled(self, query_scale: float | Tensor, logit_scale: float | Tensor) -> "Band":
        """The same band with these factors on its own."""
        return replace(
            self,
            query_scale=self.query_scale * query_scale,
            logit_scale=self.logit_scale * logit_scale,
            _query_tables={},
        )

    def key_tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of keys 0 ... length - 1, each (length, rotary_dim/2) fp32."""
        return self.frequencies.key_tables(self.keys, length, device)


@dataclass(frozen=True, eq=False)
class Segment:
    """Queries first ... last - 1 of a row (counted from the row's first token) and their bands.

    Bands are ordered along the keys and do not overlap: band b stops, for every query, where band b + 1 starts or
    before. noise_std: (T,) fp32, what a unit of distance i - j adds to the noise's standard deviation where it
    grows with distance, else the deviation itself; 0 where a query gets no noise. None: no noise at all.
    """

    first: int
    last: int
    bands: tuple[Band, ...]
    noise_std: Tensor | None = None

    @property
    def num_keys(self) -> int:
        """Keys 0 ... num_keys - 1 are all that the segment's queries see."""
        return max(int(band.stop[-1]) for band in self.bands)


@dataclass(frozen=True, eq=False)
class Row:
    """The rows of a batch that share one padding: tokens left ... left + length - 1 of the key axis are real.

    rows: their indices in the batch. first_query: index on the query axis of the first real query.
    prepared: what the fused prefill kernel reads of the segments, once a layer has needed it; prepared_backward: what
        its backward pass reads besides, for each launch.
    """

    rows: tuple[int, ...]
    left: int
    length: int
    first_query: int
    segments: tuple[Segment, ...]
    prepared: dict[PrefillKey, PreparedPrefill] = field(default_factory=dict, repr=False)
    prepared_backward: dict[BackwardKey, tuple[KeyTiles, ...]] = field(default_factory=dict, repr=False)

    @property
    def num_queries(self) -> int:
        """Real queries of each row."""
        return self.segments[-1].last - self.segments[0].first


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything the attention of one forward pass needs to know, the same for all layers.

    plain: the stock model's own attention gives this plan's result, bit for bit.
    prepared: what the fused decoding kernel reads of all rows, once a layer has needed it.
    """

    rows: tuple[Row, ...]
    noise: Noise | None = None
    plain: bool = False
    prepared: dict[StepShape, PreparedStep] = field(default_factory=dict, repr=False)
