"""Attention over bands: one function, several implementations.

`auto` takes the fastest that can run. One asked for by name runs or raises; it never gives way to another.
"""

import importlib
import logging
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from models.DPI.attention.bands import Plan

logger = logging.getLogger(__name__)

Implementation = Literal["auto", "triton", "flash", "sdpa", "reference"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

_said: set[tuple[str, str]] = set()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    *,
    scaling: float,
    layer: int = 0,
    impl: str = "auto",
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention of un-rotated queries and keys over the plan's bands.

    q: (B, H, T, D), the last T tokens; k, v: (B, Hkv, N, D), un-rotated, H a multiple of Hkv.
    need_weights: also return the probabilities (B, H, T, N); only `reference` has them.
    Returns (B, H, T, D), 0 where a query is padding, and the probabilities or None.
    Raises ValueError where the implementation asked for cannot run, saying why.
    """
    module = choose(impl, q, plan, need_weights)
    if module == "triton" and q.shape[2] == 1 and plan.rows:
        from models.DPI.attention import triton

        return triton.attend_one(q, k, v, plan, scaling=scaling, layer=layer), None
    run = _runner(module, plan, scaling, layer, need_weights)
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


def choose(impl: str, q: Tensor, plan: Plan, need_weights: bool = False) -> str:
    """The implementation that will run, by name. Raises ValueError if `impl` cannot."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"attn_impl is {impl!r}; it must be one of {', '.join(IMPLEMENTATIONS)}")
    if impl != "auto":
        why = _obstacle(impl, q, plan, need_weights)
        if why:
            raise ValueError(f"attn_impl = {impl!r} cannot run here: {why}. attn_impl = 'auto' lets one be chosen")
        return impl
    reasons: list[str] = []
    for name in ("triton", "sdpa", "reference"):
        why = _obstacle(name, q, plan, need_weights)
        if not why:
            said = (name, "; ".join(reasons))
            if said not in _said:
                _said.add(said)
                logger.info("attention: %s%s", name, f" ({said[1]})" if said[1] else "")
            return name
        reasons.append(f"not {name}: {why}")
    raise AssertionError("the reference runs everywhere")


def _obstacle(name: str, q: Tensor, plan: Plan, need_weights: bool) -> str | None:
    """Why an implementation cannot run on this input, or None."""
    if need_weights and name != "reference":
        return "it does not form the attention weights; only 'reference' does"
    if name in ("triton", "flash"):
        return importlib.import_module(f"models.DPI.attention.{name}").obstacle(q, plan)
    return None


def _runner(
    name: str, plan: Plan, scaling: float, layer: int, need_weights: bool
) -> Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor | None]]:
    module = importlib.import_module(f"models.DPI.attention.{name}")
    options = {"scaling": scaling, "noise": plan.noise, "layer": layer}

    def run(q: Tensor, k: Tensor, v: Tensor, number: int) -> tuple[Tensor, Tensor | None]:
        segments = plan.rows[number].segments
        if name == "reference":
            return module.attend(q, k, v, segments, need_weights=need_weights, **options)
        return module.attend(q, k, v, segments, **options), None

    return run
