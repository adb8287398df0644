"""The modules that a recording of their kernels stands for: whether it still computes what they would.

A recording reads parameters where they were, and calls nobody. Weights put elsewhere, another submodule or adapter, and
a hook are seen here; values that change in place are read anew in any case.
"""

import itertools
import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

_TRAINING = operator.itemgetter("training")


class Layers:
    """The modules that a recording runs, and whether they are still what they were: asked at every step, so quickly."""

    def __init__(self, base: nn.Module) -> None:
        """As they are now."""
        self._modules = list(base.modules())
        self._own = [vars(module) for module in self._modules]
        self._hooks = [own[name] for own in self._own for name in ("_forward_hooks", "_forward_pre_hooks")]
        members = [own[name] for own in self._own for name in ("_parameters", "_modules", "_buffers")]
        self._members, self._empty = [x for x in members if x], [x for x in members if not x]
        self._adapted: list[Any] = [module for module in self._modules if "_active_adapter" in vars(module)]
        self._before = self._everything()
        # Those of other classes may have no address.
        self._parameters = [x for x in self._before if type(x) is nn.Parameter]
        self._state = self._state_now()

    def are_as_before(self) -> bool:
        """Whether the recording still computes what they would: parameters' values are read anew anyway."""
        now = self._everything()
        same = len(now) == len(self._before) and all(map(operator.is_, now, self._before))
        return same and not any(self._empty) and self._state == self._state_now()

    def are_watched(self) -> bool:
        """Whether somebody waits for modules to be called, or for operators."""
        if _has_any_global_hook() or torch._C._len_torch_dispatch_stack():
            return True
        some = any(self._hooks) or any("_hf_hook" in own for own in self._own)
        return some and are_watched(self._modules)

    def _everything(self) -> list[Any]:
        """Parameters, submodules and buffers."""
        return list(itertools.chain.from_iterable(map(dict.values, self._members)))

    def _state_now(self) -> list[Any]:
        """Where parameters are, which modules train, and which of PEFT's adapters are active."""
        return [
            *map(Tensor.data_ptr, self._parameters),
            *map(_TRAINING, self._own),
            *[f"{x._active_adapter} {x._disable_adapters} {x.merged_adapters} {x.scaling}" for x in self._adapted],
        ]


def are_watched(modules: list[nn.Module]) -> bool:
    """Whether somebody waits for a module to be called, accelerate included."""
    return any(
        (module._forward_hooks or module._forward_pre_hooks or "_hf_hook" in vars(module)) and _is_watched(module)
        for module in modules
    )


def _is_watched(module: nn.Module) -> bool:
    """transformers' own hooks collect nothing unless a pass asks for it."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return "_hf_hook" in vars(module) or any(getattr(h, "__name__", "") != "output_capturing_hook" for h in hooks)
