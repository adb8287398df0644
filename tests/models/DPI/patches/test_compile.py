"""torch.compile and methods: the numbers are those of the model as it is, and fullgraph=True says why it cannot be."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.DPI.patches.Llama import uninstall
from tests.models.DPI.helpers import CHUNKS, in_pieces, logits, padded, put, tokens
from tests.models.DPI.patches.test_families import make

IDS = tokens(2, 50)
REASON = r"a method of models\.DPI plans each forward pass in Python.*leave fullgraph=True out, or uninstall"


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _small(model_type: str = "llama") -> PreTrainedModel:
    return make(model_type, num_hidden_layers=1, layer_types=["full_attention"])


def _everything(model: Any) -> list[Tensor]:
    """Within the window and beyond, a padded batch, a cache, a gradient."""
    ids, mask = padded([50, 37])
    model.zero_grad()
    model(IDS, labels=IDS, use_cache=False).loss.backward()
    gradient = model.get_input_embeddings().weight.grad.clone()
    return [
        logits(model, IDS[:, :20]),
        logits(model, IDS),
        logits(model, ids, attention_mask=mask)[mask.bool()],
        in_pieces(model, IDS, [0, 45, 46, 50]),
        gradient,
    ]


@pytest.mark.parametrize("model_type", ["llama", "nemotron", "gpt_oss"])
def test_a_compiled_model_has_the_same_numbers(model_type: str) -> None:
    model = put(_small(model_type), "dpi", CHUNKS)
    expected = _everything(model)
    found = _everything(torch.compile(model, backend="aot_eager"))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("model_type", ["llama", "nemotron"])
def test_layers_that_are_compiled_one_by_one(model_type: str) -> None:
    """Between their graphs, attention has the pass of its call."""
    model = put(_small(model_type), "dpi", CHUNKS)
    expected = [logits(model, IDS[:, :length]) for length in (50, 20, 47)]
    for layer in model.base_model.layers:
        layer.compile(backend="eager")
    found = [logits(model, IDS[:, :length]) for length in (50, 20, 47)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_model_that_was_compiled_before_its_method_came() -> None:
    model = _small()
    compiled: Any = torch.compile(model, backend="eager")
    stock = logits(model, IDS)
    assert torch.equal(logits(compiled, IDS), stock)
    for name in ("dpi", "repro_ntk"):
        put(model, name)
        expected = logits(model, IDS)
        assert not torch.equal(expected, stock)
        assert torch.equal(logits(compiled, IDS), expected)
    uninstall(model)
    assert torch.equal(logits(compiled, IDS), stock)


def test_one_graph_is_refused_with_the_reason() -> None:
    """Before the method comes and after it is gone it can be had."""
    model = _small()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    stock = logits(compiled, IDS)
    put(model)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=REASON):
        logits(compiled, IDS)
    uninstall(model)
    assert torch.equal(logits(compiled, IDS), stock)
