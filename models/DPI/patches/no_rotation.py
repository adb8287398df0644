"""What stands where a model's rotary module was, so that the stock cache holds un-rotated keys."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class NoRotation(nn.Module):
    """cos = 1 and sin = 0: queries and keys stay as they are.

    see_positions: called with the hidden states (B, T, hidden) and position_ids of every pass. stock: the module that
    this one stands for.
    """

    def __init__(self, stock: nn.Module, rotary_dim: int, see_positions: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.stock = stock
        self.rotary_dim = rotary_dim
        self.see_positions = see_positions

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, hidden) -> cos, sin (B, T, rotary_dim), or one row for all."""
        self.see_positions(x, position_ids)
        one = torch.ones((), dtype=x.dtype, device=x.device)
        shape = (1, x.shape[1], self.rotary_dim)
        return one.expand(shape).as_subclass(_One), torch.zeros_like(one).expand(shape).as_subclass(_Zero)


class _One(Tensor):
    """Cosines that are 1: to multiply by them takes no time, as the stock rotation of a long prompt does."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS and type(args[0]) is Tensor:
            return args[0]
        return super().__torch_function__(func, types, args, kwargs or {})


class _Zero(Tensor):
    """Sines that are 0, and products with them: to add them takes no time."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS and type(args[0]) is Tensor:
            return args[1]
        if func in _SUMS and type(args[0]) is Tensor:
            return args[0]
        return super().__torch_function__(func, types, args, kwargs or {})


_PRODUCTS = {Tensor.mul, Tensor.__mul__, torch.mul}
_SUMS = {Tensor.add, Tensor.__add__, torch.add}
