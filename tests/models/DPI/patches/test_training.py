"""Gradients of a whole model's weights through every method, against the definition in fp64."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from models.DPI.methods import METHODS
from tests.models.DPI.helpers import CHUNKS, NOISY, PARAMS, WINDOW, MakeModel, padded, put

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, PARAMS[name]) for name in METHODS},
    "dpi in chunks": ("dpi", CHUNKS),
    "dpi with noise": ("dpi", NOISY),
    "dpi, fractional rotation": ("dpi", CHUNKS | {"appro_attn": False}),
}


def gradients(model: PreTrainedModel, lengths: list[int]) -> dict[str, torch.Tensor]:
    """Of the loss on padded rows, by weight."""
    ids, mask = padded(lengths)
    labels = ids.masked_fill(mask == 0, -100)
    model.zero_grad()
    model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("lengths", [[61, 43], [29, 20]], ids=["beyond", "within"])
def test_gradients_are_those_of_the_definition(make_model: MakeModel, setting: str, lengths: list[int]) -> None:
    """After a pass in inference mode, whose tables the training pass must not trip over."""
    name, params = SETTINGS[setting]
    model = put(make_model(WINDOW), name, params, seed=5)
    ids, mask = padded(lengths)
    with torch.inference_mode():
        model(ids, attention_mask=mask)
    found = gradients(model.train(), lengths)
    exact = put(make_model(WINDOW).double(), name, params, seed=5, attn_impl="reference").train()
    expected = gradients(exact, lengths)
    assert found.keys() == expected.keys()
    for weight, gradient in expected.items():
        torch.testing.assert_close(found[weight], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


def test_training_lowers_the_loss_beyond_the_window(make_model: MakeModel) -> None:
    model = put(make_model(WINDOW)).train()
    ids, _ = padded([61, 61])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
