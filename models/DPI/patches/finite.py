"""Where numbers that are not finite come from: the first layer and position, by one more forward pass with hooks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.DPI.patches.families import logits_of


@torch.inference_mode()
def where_not_finite(model: PreTrainedModel, input_ids: Sequence[int], last: int | None = None) -> str:
    """A sentence that names the first module, in the order of computation, with a value that is NaN or infinite.

    input_ids: of one row, which is fed at once. last: the position whose logits are looked at, the last one if None.
    A module whose input is the first such value stands behind what is no module, as the output projection behind
    attention. Never raises: memory may not suffice where the record itself has failed.
    """
    ids = torch.tensor([list(input_ids)], device=model.device)  # (1, T)
    found: list[str] = []
    at = len(input_ids) - 1 if last is None else last
    try:
        with _watching(model, found):
            hidden = model.get_decoder()(ids, use_cache=False).last_hidden_state
            logits_of(model, hidden[:, at : at + 1])
    except RuntimeError as error:
        said = (str(error).splitlines() or [""])[0]
        return f"the layer is not known: looking for it ended in {type(error).__name__}: {said}"
    if not found:
        return f"no layer has such a value when {len(input_ids)} tokens are fed at once"
    return f"the first such value is {found[0]}"


@contextmanager
def _watching(model: nn.Module, found: list[str]) -> Iterator[None]:
    """Within, `found` gets the place of the first value that is not finite: of inputs and outputs of leaf modules."""

    def look(name: str, side: str, values: Any) -> None:
        for value in values if isinstance(values, tuple | list) else (values,):
            if found or not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            wrong = ~value.isfinite()
            if wrong.any():
                # (1, T, ...), also of cosines and sines; the head's position is not the whole input's
                place = int(wrong.nonzero()[0, 1]) if value.dim() > 2 and value.shape[1] > 1 else None
                found.append(f"in the {side} of {name}" + ("" if place is None else f", at position {place}"))

    handles = []
    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            handles.append(module.register_forward_pre_hook(lambda _, values, name=name: look(name, "input", values)))
            handles.append(
                module.register_forward_hook(lambda _, inputs, values, name=name: look(name, "output", values))
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
