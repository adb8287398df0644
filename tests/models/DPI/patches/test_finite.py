from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from models.DPI import build_method, install
from models.DPI.patches.finite import where_not_finite

IDS = [5, 9, 17, 33, 2, 71, 44]


@pytest.fixture
def model(make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return make_model()


def weight_of(model: PreTrainedModel, name: str) -> torch.Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return weight


@pytest.mark.parametrize(
    ("name", "side", "place"),
    [
        ("model.embed_tokens", "output", ", at position 3"),
        ("model.layers.0.input_layernorm", "output", ", at position 0"),
        ("model.layers.1.self_attn.v_proj", "output", ", at position 0"),
        ("model.layers.1.mlp.down_proj", "output", ", at position 0"),
        ("model.norm", "output", ", at position 0"),
        ("lm_head", "output", ""),
    ],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_first_module_is_named(model: PreTrainedModel, name: str, side: str, place: str, value: float) -> None:
    with torch.no_grad():
        weight_of(model, name)[IDS[3] if name == "model.embed_tokens" else 0] = value
        weight_of(model, "lm_head")[50] = torch.nan  # later ones do not count
    assert where_not_finite(model, IDS) == f"the first such value is in the {side} of {name}{place}"


def test_the_position_is_the_first_of_that_module(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for token in (IDS[4], IDS[2]):
            weight_of(model, "model.embed_tokens")[token] = torch.nan
    assert where_not_finite(model, IDS).endswith("at position 2")


def test_attention_is_named_by_the_module_behind_it(model: PreTrainedModel) -> None:
    """Beyond the window, where a method's own attention runs."""
    install(model, build_method("repro_ntk", {"factor": 2.0}), 4, attn_impl="reference")
    assert where_not_finite(model, IDS) == "no layer has such a value when 7 tokens are fed at once"
    layer = model.model.layers[1].self_attn

    def spoil(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        wrong = inputs[0].clone()
        wrong[0, 5, 3] = -torch.inf
        return (wrong,)

    handle = layer.o_proj.register_forward_pre_hook(spoil)
    assert where_not_finite(model, IDS) == (
        "the first such value is in the input of model.layers.1.self_attn.o_proj, at position 5"
    )
    handle.remove()


def test_hooks_go_and_a_failure_is_said(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: len(module._forward_hooks) for name, module in model.named_modules()}

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room\nfor this")

    monkeypatch.setattr("models.DPI.patches.finite.logits_of", full)
    said = where_not_finite(model, IDS)
    assert said == "the layer is not known: looking for it ended in OutOfMemoryError: no room"
    assert before == {name: len(module._forward_hooks) for name, module in model.named_modules()}
