"""A bar while a model reads a long prompt, which on a CPU takes a minute and says nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm
from transformers import PreTrainedModel

from models.DPI.patches.Llama import inner_of

LONG = 1024
"""Tokens from which on a prompt gets a bar."""


@contextmanager
def progress(model: PreTrainedModel, *, disable: bool | None = None) -> Iterator[None]:
    """Show a bar, layer by layer, on standard error while the block's first prompt of 1,024 tokens or more is read.

    disable: whether to show nothing; None: where standard error is no terminal. It changes no result, and the hooks it
    needs are gone before the first token is decoded.
    """
    layers: list[nn.Module] = list(inner_of(model).base_model.layers)
    bar: tqdm[Any] | None = None
    done = 0
    handles: list[RemovableHandle] = []

    def end() -> None:
        for handle in handles:
            handle.remove()
        handles.clear()
        if bar is not None:
            bar.close()

    def after(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal bar, done
        hidden = output[0] if isinstance(output, tuple) else output
        if not isinstance(hidden, Tensor) or hidden.shape[-2] < LONG:
            return
        if bar is None:
            bar = tqdm(total=len(layers), desc=f"reading {hidden.shape[-2]:,} tokens", unit="layer", disable=disable)
        bar.update()
        done += 1
        if done == len(layers):
            end()

    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield
    finally:
        end()
