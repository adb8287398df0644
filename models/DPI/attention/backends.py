"""The implementations of attention over bands, one row of a table each. `auto` takes the first that can run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.DPI.attention import reference, sdpa, triton, triton_gradients
from models.DPI.attention.bands import Plan, Row

Output = tuple[Tensor, Tensor | None]


def _none(q: Tensor, plan: Plan) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """An implementation.

    attend: (q, k, v, row, scaling=, softcap=, sinks=, noise=, layer=, need_weights=) for rows that share their padding,
    given without it: q (B, H, T, D), k and v (B, Hkv, N, D) -> (B, H, T, D), and (B, H, T, N) or None.
    obstacle: why it cannot run on queries and a plan, or None.
    attend_one: (q, k, v, plan, scaling=, softcap=, sinks=, layer=) for a decoding step of the whole batch, padding
    included, without gradients; None where it goes row by row.
    forms_weights: it has the probabilities. has_backward: gradients are right, where backward_obstacle, as obstacle,
    gives no reason. caps: logits may have a soft cap. by_name_only: `auto` leaves it out.
    """

    name: str
    attend: Callable[..., Output]
    obstacle: Callable[[Tensor, Plan], str | None] = _none
    attend_one: Callable[..., Tensor] | None = None
    forms_weights: bool = False
    has_backward: bool = True
    backward_obstacle: Callable[[Tensor, Plan], str | None] = _none
    caps: bool = True
    by_name_only: bool = False

    def why_not(
        self, q: Tensor, plan: Plan, *, need_weights: bool, need_gradients: bool, capped: bool = False
    ) -> str | None:
        """Why it cannot run, or None."""
        if need_weights and not self.forms_weights:
            return "it does not form the attention weights; only 'reference' does"
        if need_gradients and not self.has_backward:
            return "it has no backward pass, and a tensor requires gradients"
        if capped and not self.caps:
            return "it has no soft cap on logits, and the model has one"
        why = self.obstacle(q, plan)
        return self.backward_obstacle(q, plan) if why is None and need_gradients else why


def _reference(q: Tensor, k: Tensor, v: Tensor, row: Row, **options: Any) -> Output:
    return reference.attend(q, k, v, row.segments, **options)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, row: Row, *, need_weights: bool, **options: Any) -> Output:
    return sdpa.attend(q, k, v, row.segments, **options), None


def _triton(q: Tensor, k: Tensor, v: Tensor, row: Row, *, need_weights: bool, **options: Any) -> Output:
    return triton.attend(q, k, v, row, **options), None


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "triton",
            _triton,
            obstacle=triton.obstacle,
            attend_one=triton.attend_one,
            backward_obstacle=triton_gradients.obstacle,
        ),
        Backend("flash", _sdpa, obstacle=sdpa.flash_obstacle, caps=False, by_name_only=True),
        Backend("sdpa", _sdpa),
        Backend("reference", _reference, forms_weights=True),
    )
}
