"""Attention over bands in fused Triton kernels: one launch for many queries, one for a token to decode.

Nothing in them touches logits in memory, and per token and layer nothing of the cache's length happens outside them.
This module says where they run. The kernels, and Triton with them, are imported when first needed.
"""

import functools
import importlib.util

import torch
from torch import Tensor

from models.DPI.attention import cards, triton_gradients
from models.DPI.attention.bands import Plan, Row
from models.DPI.attention.noise import Noise
from models.DPI.attention.prepared import PreparedStep, StepShape

HEAD_DIMS = (64, 80, 96, 112, 128, 192, 256)
DTYPES = (torch.bfloat16, torch.float16)
# The number of programs that recorded launches have room for is a multiple of this, and never falls.
_SPLITS_MULTIPLE = 4


def obstacle(q: Tensor, plan: Plan) -> str | None:
    """Why these queries and bands cannot run here, or None."""
    if q.device.type != "cuda":
        return f"it needs a CUDA device, and the tensors are on {q.device.type}"
    if torch.version.hip is not None:
        return "it is written for NVIDIA's GPUs"
    if not _is_installed():
        return "the package triton is not installed"
    why = cards.card_of(q.device).obstacle
    if why:
        return why
    if q.dtype not in DTYPES:
        return f"its tensor cores take bfloat16 and float16, and the queries are {q.dtype}"
    if q.shape[-1] not in HEAD_DIMS:
        return f"head_dim = {q.shape[-1]} is not one of {', '.join(map(str, HEAD_DIMS))}"
    if plan.noise is not None and plan.noise.needs_row_statistics:
        return "noise with scale_mean = 1 or scale_max = 1 needs a row's statistics first"
    return None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row: Row,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    noise: Noise | None = None,
    layer: int = 0,
    lse: Tensor | None = None,
) -> Tensor:
    """Attention of many queries of rows that share their padding.

    q: (B, H, T, D), the row's queries; k, v: (B, Hkv, N, D), its keys; bf16 or fp16, un-rotated, no padding.
    softcap, sinks: see `api.attend`. lse: (B, H, T) fp32, contiguous, receives the log-sum-exps, sinks included.
    Returns (B, H, T, D), contiguous as (B, T, H, D). Gradients are right where `triton_gradients.obstacle` has none.
    """
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, sinks)):
        if noise is not None:
            raise ValueError("attention with noise has no backward pass here: take attn_impl = 'sdpa' for gradients")
        if (why := triton_gradients.obstacle_of_row(q, row)) is not None:
            raise ValueError(f"attention has no backward pass here: {why}; take attn_impl = 'sdpa' for gradients")
        return triton_gradients.attend(q, k, v, row, scaling=scaling, softcap=softcap, sinks=sinks, lse=lse)
    from models.DPI.attention.kernels import prefill

    return prefill.attend(
        q, k, v, row, scaling=scaling, softcap=softcap, sinks=sinks, noise=noise, layer=layer, lse=lse
    )


def attend_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    layer: int = 0,
    lse: Tensor | None = None,
) -> Tensor:
    """Attention of a decoding step: one query in every row of the batch, whatever its padding, in one launch.

    q: (B, H, 1, D); k, v: (B, Hkv, N, D) with the padding. softcap, sinks: see `api.attend`.
    lse: (B, H, 1) fp32, contiguous, receives the log-sum-exps, sinks included.
    Returns (B, H, 1, D); rows of the batch that the plan leaves out are 0.
    """
    from models.DPI.attention.kernels import decode

    return decode.attend_one(q, k, v, plan, scaling=scaling, softcap=softcap, sinks=sinks, layer=layer, lse=lse)


def prepare_step(plan: Plan, shape: StepShape, previous: PreparedStep | None) -> PreparedStep:
    """What `attend_one` reads of a plan, in the tensors of a previous step where they fit; for `Plan.prepared`.

    Launches that were recorded for that step then compute this one; the tensors are written behind what the stream has
    to do already, and nobody waits.
    """
    from models.DPI.attention.kernels import pieces

    return pieces.prepare_step(plan, shape, previous=previous, multiple=_SPLITS_MULTIPLE)


@functools.lru_cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
