"""What the fused kernels read of a plan, the same for all its layers: made in the first of them, kept by the plan.

The kernels' modules make it (`kernels.tiles`, `kernels.key_tiles`, `kernels.pieces`); a row or a plan holds it, and it
goes with them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from models.DPI.attention.tables import KeyTable


class PrefillKey(NamedTuple):
    """What a row's preparation depends on. planes: B * Hkv. tile_queries: queries of a tile."""

    device: torch.device
    planes: int
    tile_queries: int


@dataclass(frozen=True)
class Launch:
    """One launch of the prefill kernel.

    tables: for each slot of rotated keys its table, and the keys first ... last - 1 that need it.
    tiles: (tiles, columns) int32, records of `kernels.tiles`. num_segments: the row's next segments, which it covers.
    """

    tables: tuple[tuple[KeyTable, int, int], ...]
    tiles: Tensor
    num_segments: int


@dataclass(frozen=True)
class PreparedPrefill:
    """What the prefill kernel reads of a row's T queries.

    num_slots: tables of keys that a launch needs at most. bounds: (2, bands, T) int32, the bands' starts and stops.
    cos, sin: (bands, T, rotary_dim/2) fp32, of the queries. rest: (bands, T) fp32, factor on their components that do
    not rotate. gates: (periods, 2) int64, see `kernels.noise.gates_of`. std: (T,) fp32, a segment's noise_std.
    noisy: a bit for each band.
    """

    launches: tuple[Launch, ...]
    num_slots: int
    num_bands: int
    bounds: Tensor
    cos: Tensor
    sin: Tensor
    rest: Tensor
    gates: Tensor
    std: Tensor
    noisy: int


class BackwardKey(NamedTuple):
    """What a row's tiles of keys depend on. prefill: of the launches. tile_keys: keys of a tile."""

    prefill: PrefillKey
    tile_keys: int


@dataclass(frozen=True)
class KeyTiles:
    """What the kernel for the gradients of keys reads of one launch: int32, records of `kernels.key_tiles`.

    first_runs: (tiles + 1,), the first run of each tile of keys. runs: (runs, columns). entries: (entries, columns).
    several: some tile has more than one run.
    """

    first_runs: Tensor
    runs: Tensor
    entries: Tensor
    several: bool


class StepShape(NamedTuple):
    """What a decoding step's preparation depends on besides its plan. heads: of the queries."""

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    device: torch.device

    @classmethod
    def of(cls, batch: int, heads: int, keys: Tensor) -> "StepShape":
        """keys: (B, Hkv, N, D)."""
        return cls(batch, heads, keys.shape[1], keys.shape[3], keys.device)


@dataclass(frozen=True)
class PreparedStep:
    """What the decoding kernel reads, layer after layer.

    shape: what it was prepared for. pieces: (B, splits, columns) int64, records of `kernels.pieces.Piece`.
    numbers: (B, 1 + bands * (1 + rotary_dim)) fp32, for each row of the batch the noise's deviation and, for each band,
    the factor on the query's components that do not rotate, and its cosines and sines. data: the memory of both.
    parts, log_totals: the programs' results before they are merged. arrivals: zeros, and zeros again after each launch.
    options: the kernel's constants. key_tables keeps the addresses in `pieces` alive. The tensors of a step that is
    over may hold the next token's records.
    """

    shape: StepShape
    data: Tensor
    pieces: Tensor
    numbers: Tensor
    parts: Tensor
    log_totals: Tensor
    arrivals: Tensor
    options: dict[str, int]
    key_tables: list[tuple[Tensor, Tensor]]
