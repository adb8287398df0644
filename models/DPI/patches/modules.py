"""What is put in place of parts of a model: a method of a module, and the rotary module."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ReplacedMethod:
    """`run(module, stock, ...)` in place of a module's method; `stock` is the module's own, None if it has none.

    It holds the module weakly: a model that is deleted is gone, without waiting for the garbage collector.
    """

    def __init__(self, module: nn.Module, name: str, run: Callable[..., Any]) -> None:
        """Replace the method of that name, such as "forward", on this module alone."""
        self._module = weakref.ref(module)
        self._name = name
        self._own: Callable[..., Any] | None = vars(module).get(name)  # accelerate's, where it placed the model
        self._run = run
        setattr(module, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run in place of the module's own."""
        module = self._module()
        assert module is not None
        stock = self._own
        if stock is None and hasattr(type(module), self._name):  # some are looked up and need not be there
            stock = functools.partial(getattr(type(module), self._name), module)
        return self._run(module, stock, *args, **kwargs)

    def remove(self) -> None:
        """Give the module its own method back."""
        module = self._module()
        if module is None:
            return
        if self._own is None:
            delattr(module, self._name)
        else:
            setattr(module, self._name, self._own)

    def __getstate__(self) -> tuple[Any, ...]:
        """For a copy, whose module is the copied one."""
        return self._module(), self._name, self._own, self._run

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """See `__getstate__`."""
        module, self._name, self._own, self._run = state
        self._module = weakref.ref(module)


class NoRotation(nn.Module):
    """cos = 1 and sin = 0: queries and keys stay as they are, and a cache holds keys that are not rotated.

    stock: the module that this one stands for. width: of its tables, the components of a head that it rotates, or half
    of them. running: the pass under way, which cosines carry as an attribute to layers that get nothing else.
    """

    def __init__(self, stock: nn.Module, width: int, running: Callable[[], Any]) -> None:
        """See the class."""
        super().__init__()
        self.stock = stock
        self.width = width
        self._running = running

    def forward(self, x: Tensor, position_ids: Tensor | None = None, *kind: str) -> tuple[Tensor, Tensor]:
        """(B, T, hidden) -> cos, sin (1, T, width), one row for all."""
        one = torch.ones((), dtype=x.dtype, device=x.device)
        shape = (1, x.shape[1], self.width)
        cos, sin = one.expand(shape).as_subclass(_One), torch.zeros_like(one).expand(shape).as_subclass(_Zero)
        cos.forward_pass = self._running()
        return cos, sin


class _One(Tensor):
    """Cosines that are 1: to multiply by them takes no time, as the stock rotation of a long prompt does."""

    forward_pass: Any = None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS and type(args[0]) is Tensor:
            return args[0]
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


class _Zero(Tensor):
    """Sines that are 0, and products with them: to add or subtract them takes no time."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS and type(args[0]) is Tensor:
            return args[1]
        if func in _SUMS and type(args[0]) is Tensor:
            return args[0]
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


_PRODUCTS = {Tensor.mul, Tensor.__mul__, torch.mul}
_SUMS = {Tensor.add, Tensor.__add__, torch.add, Tensor.sub, Tensor.__sub__, torch.sub}
