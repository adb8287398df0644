"""Noise on logits, a pure function of (seed, layer, head, i, j): equal on every device, for every block size.

A pool of 2**18 deviates is drawn once. Queries and keys form blocks of 8 x 32, and each block of a head reads 256
deviates from a place that a 32-bit hash of (seed, layer, head, i // 8, j // 32) gives:
value(i, j) = pool[(place + 32 (i mod 8) + slot(j mod 32)) mod 2**18]. A kernel reads the pool
instead of drawing a number per logit: a warp of it reads a block in one load, 16 bytes per thread, and the slots put
the eight keys that one thread of a matrix unit holds side by side.
The pool holds the quantiles of the distribution in a hashed order, rounded to fp16: its mean and deviation are
exact to 1e-4, and its values are the same wherever they are converted.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

POOL_BITS = 18
POOL_SIZE = 1 << POOL_BITS
BLOCK_QUERIES, BLOCK_KEYS = 8, 32
_BLOCK = BLOCK_QUERIES * BLOCK_KEYS
_ALIGN = 8
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Noise:
    """Noise of the paper (section 3.3), as its parameters name it.

    kind: "gaussian", or "uniform" on [0, 1).
    scale_std: the deviation grows with the distance i - j.
    scale_mean: gaussian, the mean is the row's mean logit, else 0.
    scale_max: uniform, multiplied by the row's largest logit.
    """

    kind: Literal["gaussian", "uniform"]
    scale_std: bool
    scale_mean: bool = False
    scale_max: bool = False
    seed: int = 0

    @property
    def needs_row_statistics(self) -> bool:
        """Whether a query's logits must all be known before the noise is."""
        return (self.kind == "gaussian" and self.scale_mean) or (self.kind == "uniform" and self.scale_max)


def mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers that flips each output bit with probability near one half.

    x: int64 in [0, 2**32). The multipliers are those of C. Wellons' lowbias32.
    """
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def head_keys(seed: int, layer: int, num_heads: int, device: torch.device | str = "cpu") -> Tensor:
    """(num_heads,) int64 in [0, 2**32): one hash key for each query head of a layer."""
    base = mix(torch.tensor((seed ^ (seed >> 32)) & _MASK))
    base = mix((base + layer) & _MASK)
    return mix((base + torch.arange(num_heads)) & _MASK).to(device)


def places(keys: Tensor, queries: Tensor, blocks: Tensor) -> Tensor:
    """Where in the pool blocks begin: (H,) head keys, (T,) query indices i, (M,) blocks of keys j // 32, all int64.

    Returns (H, T, M) int64, multiples of 8.
    """
    rows = mix(keys[:, None] ^ mix((queries // BLOCK_QUERIES) & _MASK)[None, :])
    return mix((rows[:, :, None] + blocks) & _MASK) & (POOL_SIZE - _ALIGN)


def slots(queries: Tensor, keys: Tensor) -> Tensor:
    """Where in its block a logit reads, (T, N): 32 (i mod 8), and for key 8m + 2t + e of the block 8t + 2m + e."""
    of_key = 8 * (keys % 8 // 2) + 2 * (keys % BLOCK_KEYS // 8) + keys % 2
    return BLOCK_KEYS * (queries % BLOCK_QUERIES)[:, None] + of_key


def pool(kind: str, device: torch.device) -> Tensor:
    """(2**18,) fp16 deviates of unit scale."""
    return pool_and_margin(kind, device)[:POOL_SIZE]


# One for each kind and device, 512 KiB, the same for all models: it may outlive each of them.
@functools.lru_cache(maxsize=8)
def pool_and_margin(kind: str, device: torch.device) -> Tensor:
    """(2**18 + 256,) fp16: the pool, and its beginning once more, so that no block wraps."""
    order = mix(torch.arange(POOL_SIZE)).argsort().argsort()
    u = (order.double() + 0.5) / POOL_SIZE
    # The largest uniforms would round to 1, which the half-open interval leaves out.
    values = torch.special.ndtri(u) if kind == "gaussian" else u.clamp(max=1 - 2**-11)
    values = values.half()
    return torch.cat((values, values[:_BLOCK])).to(device)


def draw(noise: Noise, layer: int, num_heads: int, queries: Tensor, keys: Tensor) -> Tensor:
    """(H, T, N) fp32 deviates of unit scale for query indices (T,) and key indices (N,), both int64."""
    blocks, block_of_key = (keys // BLOCK_KEYS).unique_consecutive(return_inverse=True)
    place = places(head_keys(noise.seed, layer, num_heads, queries.device), queries, blocks)
    at = (place[:, :, block_of_key] + slots(queries, keys)) & (POOL_SIZE - 1)
    return pool(noise.kind, queries.device)[at].float()


def apply(
    noise: Noise, logits: Tensor, allowed: Tensor, noisy: Tensor, std: Tensor, layer: int, queries: Tensor, keys: Tensor
) -> Tensor:
    """Add noise to logits.

    logits: (B, H, T, N) fp32; allowed: (T, N), the keys each query sees; noisy: (T, N), the logits that get noise;
    std: (T,) fp32, a segment's noise_std; queries (T,), keys (N,): indices i and j.
    """
    sigma = std[:, None]
    if noise.scale_std:
        sigma = sigma * (queries[:, None] - keys[None, :])
    value = draw(noise, layer, logits.shape[1], queries, keys) * sigma  # (H, T, N)
    if noise.kind == "gaussian" and noise.scale_mean:
        mean = logits.masked_fill(~allowed, 0).sum(-1, keepdim=True) / allowed.sum(-1).clamp(min=1)[:, None]
        value = value + mean
    if noise.kind == "uniform" and noise.scale_max:
        value = value * logits.masked_fill(~allowed, float("-inf")).amax(-1, keepdim=True)
    gets_noise = noisy & (std > 0)[:, None]
    return logits + value.to(logits.dtype).masked_fill(~gets_noise, 0.0)
