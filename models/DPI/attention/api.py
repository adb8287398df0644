"""Attention over bands: one function, several implementations.

`auto` takes the fastest that can run. One asked for by name runs or raises; it never gives way to another.
"""

import logging
from typing import Any

import torch
from torch import Tensor

from models.DPI.attention.backends import BACKENDS
from models.DPI.attention.bands import Plan

logger = logging.getLogger(__name__)

IMPLEMENTATIONS: tuple[str, ...] = ("auto", *BACKENDS)

_said: set[tuple[str, str]] = set()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    layer: int = 0,
    impl: str = "auto",
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention of un-rotated queries and keys over the plan's bands.

    q: (B, H, T, D), the last T tokens; k, v: (B, Hkv, N, D), un-rotated, H a multiple of Hkv.
    scaling: factor on the logits. softcap: c, scaled logits x become c tanh(x / c) before noise is added, None if they
    stay. sinks: (H,), a logit per head that joins each query's softmax and has no value. layer: its number, which the
    noise depends on.
    impl: one of `IMPLEMENTATIONS`.
    need_weights: also return the probabilities (B, H, T, N); only `reference` has them.
    Returns (B, H, T, D), 0 where a query is padding, and the probabilities or None.
    Raises ValueError where the implementation asked for cannot run, saying why.
    """
    given = [x for x in (q, k, v, sinks) if x is not None]
    need_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    backend = BACKENDS[choose(impl, q, plan, need_weights, need_gradients, softcap is not None)]
    softmax: dict[str, Any] = {"scaling": scaling, "softcap": softcap, "sinks": sinks}
    if backend.attend_one is not None and q.shape[2] == 1 and plan.rows and not need_gradients:
        return backend.attend_one(q, k, v, plan, **softmax, layer=layer), None

    def run(q: Tensor, k: Tensor, v: Tensor, number: int) -> tuple[Tensor, Tensor | None]:
        return backend.attend(
            q, k, v, plan.rows[number], **softmax, noise=plan.noise, layer=layer, need_weights=need_weights
        )

    if len(plan.rows) == 1 and plan.rows[0].length == k.shape[2] and plan.rows[0].first_query == 0:
        return run(q, k, v, 0)
    out = torch.zeros_like(q)
    weights = q.new_zeros(*q.shape[:3], k.shape[2]) if need_weights else None
    for number, row in enumerate(plan.rows):
        rows = _rows(row.rows)
        keys = slice(row.left, row.left + row.length)
        queries = slice(row.first_query, row.first_query + row.num_queries)
        part, part_weights = run(q[rows, :, queries], k[rows, :, keys], v[rows, :, keys], number)
        out[rows, :, queries] = part
        if weights is not None and part_weights is not None:
            weights[rows, :, queries, keys] = part_weights
    return out, weights


def _rows(rows: tuple[int, ...]) -> slice | list[int]:
    """An index that copies nothing where the rows are neighbours."""
    return slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] + 1 == len(rows) else list(rows)


def choose(
    impl: str, q: Tensor, plan: Plan, need_weights: bool = False, need_gradients: bool = False, capped: bool = False
) -> str:
    """The implementation that will run, by name.

    need_gradients: a tensor requires them. capped: logits have a soft cap. Raises ValueError if `impl` cannot run,
    saying why.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"attn_impl is {impl!r}; it must be one of {', '.join(IMPLEMENTATIONS)}")
    needs = {"need_weights": need_weights, "need_gradients": need_gradients, "capped": capped}
    if impl != "auto":
        why = BACKENDS[impl].why_not(q, plan, **needs)
        if why:
            raise ValueError(f"attn_impl = {impl!r} cannot run here: {why}. attn_impl = 'auto' lets one be chosen")
        return impl
    reasons: list[str] = []
    for name, backend in BACKENDS.items():
        if backend.by_name_only:
            continue
        why = backend.why_not(q, plan, **needs)
        if not why:
            _say(name, "; ".join(reasons))
            return name
        reasons.append(f"not {name}: {why}")
    raise AssertionError("the reference runs everywhere")


def _say(name: str, reasons: str) -> None:
    """Log a choice the first time that it is made for these reasons."""
    if (name, reasons) not in _said:
        _said.add((name, reasons))
        logger.info("attention: %s%s", name, f" ({reasons})" if reasons else "")
