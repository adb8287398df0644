"""Attention over bands on a paged cache of un-rotated keys. One implementation for each type of device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vllm_gali import cuda
from vllm_gali.gali import Segment, sdpa


@dataclass(frozen=True)
class Batch:
    """The requests of one step.

    starts: of each request's queries among those of the step, and the end of the last, R + 1. lengths: tokens of each
    request, those of this step included, R. block_table: (R, blocks) int32, where its keys are.
    segments: each request's bands; none where it has no query.
    prepared: what an implementation makes of the batch for all layers. kept: what it keeps from batch to batch.
    """

    starts: Sequence[int]
    lengths: Sequence[int]
    block_table: Tensor
    segments: Sequence[Sequence[Segment]]
    prepared: dict[Any, Any] = field(default_factory=dict, repr=False)
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)


def write(key: Tensor, value: Tensor, cache: Tensor, slots: Tensor) -> None:
    """Put keys and values (N, Hkv, D) into their slots of the cache, (blocks, Hkv, block size, 2 D), keys first.

    slots: (N or fewer,) int64; what stands behind them, and where a slot is negative, is padding.
    """
    block_size = cache.shape[2]
    at = torch.nonzero(slots >= 0).flatten()
    slots = slots[at].long()
    cache[slots // block_size, :, slots % block_size] = torch.cat((key[at], value[at]), dim=-1).to(cache.dtype)


def gather(query: Tensor, cache: Tensor, batch: Batch, scaling: float, out: Tensor) -> None:
    """Attention request by request, keys and values copied out of their blocks first.

    query, out: (N, H, D), N of them real or more; cache: as for `write`. What no request owns of `out` stays.
    """
    block_size, head_dim = cache.shape[2], query.shape[-1]
    for number, segments in enumerate(batch.segments):
        if not segments:
            continue
        at, length = slice(batch.starts[number], batch.starts[number + 1]), batch.lengths[number]
        blocks = batch.block_table[number, : -(-length // block_size)].long()
        keys_values = cache[blocks].transpose(0, 1).flatten(1, 2)[None, :, :length].to(query.dtype)  # (1, Hkv, n, 2 D)
        k, v = keys_values.split(head_dim, dim=-1)
        q = query[at].transpose(0, 1)[None]
        found = sdpa.attend(q.contiguous(), k.contiguous(), v.contiguous(), segments, scaling=scaling)
        out[at] = found[0].transpose(0, 1)


class Implementation(NamedTuple):
    """Of one type of device. attend: see `gather`. write: see `write`."""

    attend: Callable[[Tensor, Tensor, Batch, float, Tensor], None]
    write: Callable[[Tensor, Tensor, Tensor, Tensor], None]


IMPLEMENTATIONS = {"cpu": Implementation(gather, write), "cuda": Implementation(cuda.attend, cuda.write)}
"""By the type of device. What is not here is refused when an engine starts."""
