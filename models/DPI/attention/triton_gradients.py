"""Gradients through the fused prefill: autograd's view of the kernels, and where their backward pass runs.

The backward pass forms the logits again from what is kept: the inputs, un-rotated, the output and its log-sum-exps.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.DPI.attention import cards
from models.DPI.attention.bands import Plan, Row

HEAD_DIMS = (64, 80, 96, 128, 256)


def obstacle(q: Tensor, plan: Plan) -> str | None:
    """Why there is no backward pass for these queries and bands, or None; where the forward pass runs."""
    if plan.noise is not None:
        return "its backward pass draws no noise, and a tensor requires gradients"
    return next((why for row in plan.rows[:1] if (why := obstacle_of_row(q, row)) is not None), None)


def obstacle_of_row(q: Tensor, row: Row) -> str | None:
    """The same for rows of a batch without noise."""
    head_dim = q.shape[-1]
    if head_dim not in HEAD_DIMS:
        return f"its backward pass takes head_dim {', '.join(map(str, HEAD_DIMS))}, and it is {head_dim}"
    if row.segments[0].bands[0].frequencies.rotary_dim != head_dim:
        return "its backward pass needs all components of a head to be rotary"
    if not cards.card_of(q.device).has_copy_engine:
        return "its backward pass needs a GPU of compute capability 9.0 (Hopper) or later"
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
    lse: Tensor | None = None,
) -> Tensor:
    """As `triton.attend`, without noise, with a backward pass. Gradients of gradients raise RuntimeError."""
    out: Tensor = _Differentiable.apply(q, k, v, sinks, row, scaling, softcap, lse)  # type: ignore[no-untyped-call]
    return out


class _Differentiable(torch.autograd.Function):
    """The fused prefill, with what its backward pass needs."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        row: Row,
        scaling: float,
        softcap: float | None,
        lse: Tensor | None,
    ) -> Tensor:
        """See `attend`."""
        from models.DPI.attention.kernels import prefill

        own = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)  # the caller may write to his own
        out = prefill.attend(q, k, v, row, scaling=scaling, softcap=softcap, sinks=sinks, lse=own)
        if lse is not None:
            lse.copy_(own)
        ctx.save_for_backward(q, k, v, sinks, out, own)
        ctx.row, ctx.scaling, ctx.softcap = row, scaling, softcap
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and the sinks, those that are wanted."""
        from models.DPI.attention.kernels import backward

        q, k, v, sinks, out, lse = ctx.saved_tensors
        of_q, of_k, of_v, of_sinks = ctx.needs_input_grad[:4]
        delta = backward.delta_of(d_out, out)
        d_sinks = None
        if sinks is not None and of_sinks:  # a sink's value is 0, so that only delta is left of its logit's gradient
            p = (sinks.float()[None, :, None] - lse).exp()
            d_sinks = -(p * delta).sum((0, 2)).to(sinks.dtype)
        found = backward.gradients(
            q,
            k,
            v,
            lse,
            delta,
            d_out,
            ctx.row,
            scaling=ctx.scaling,
            softcap=ctx.softcap,
            of_queries=of_q,
            of_keys=of_k or of_v,
        )
        return *found, d_sinks, None, None, None, None
