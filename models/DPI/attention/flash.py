"""Attention over bands through PyTorch's FlashAttention alone: its parts merged by their log-sum-exp.

What `sdpa` does where it finds a fitting kernel, but refusing what FlashAttention cannot take, noise above all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.DPI.attention import sdpa
from models.DPI.attention.bands import Plan, Segment
from models.DPI.attention.noise import Noise

_MAX_HEAD_DIM = 256


def obstacle(q: Tensor, plan: Plan) -> str | None:
    """Why these queries and bands cannot run here, or None."""
    if q.device.type != "cuda":
        return f"it needs a CUDA device, and the tensors are on {q.device.type}"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"FlashAttention takes bfloat16 and float16, and the queries are {q.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > _MAX_HEAD_DIM:
        return f"head_dim = {q.shape[-1]} must be a multiple of 8 of at most {_MAX_HEAD_DIM}"
    if plan.noise is not None:
        return "FlashAttention adds no noise"
    return None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Sequence[Segment],
    *,
    scaling: float,
    noise: Noise | None = None,
    layer: int = 0,
) -> Tensor:
    """As `sdpa.attend`, for inputs without an obstacle."""
    return sdpa.attend(q, k, v, segments, scaling=scaling, noise=noise, layer=layer)
