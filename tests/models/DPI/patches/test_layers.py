"""What of a model's modules a recording depends on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models.DPI.patches.layers import Layers
from tests.models.DPI.helpers import WINDOW, MakeModel


@pytest.fixture
def model(make_model: MakeModel) -> Any:
    config = LoraConfig(r=2, target_modules=["q_proj"])
    wrapped: Any = get_peft_model(make_model(WINDOW), config)
    wrapped.add_adapter("other", config)
    return wrapped.eval()


def _q(model: Any) -> Any:
    return model.get_base_model().model.layers[1].self_attn.q_proj


def _parameter(model: Any) -> None:
    _q(model).base_layer.weight = nn.Parameter(_q(model).base_layer.weight.detach().clone())


def _data(model: Any) -> None:
    _q(model).base_layer.weight.data = _q(model).base_layer.weight.data.clone()


def _module(model: Any) -> None:
    model.get_base_model().model.layers[0].mlp.act_fn = nn.ReLU()


def _buffer(model: Any) -> None:
    model.get_base_model().model.layers[0].register_buffer("more", torch.zeros(1))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "parameter": _parameter,
    "data": _data,
    "module": _module,
    "buffer": _buffer,
    "no bias any more": lambda model: _q(model).base_layer.register_parameter("bias", nn.Parameter(torch.zeros(64))),
    "dtype": lambda model: model.double(),
    "training": lambda model: _q(model).train(),
    "another adapter": lambda model: model.set_adapter("other"),
    "no adapter": lambda model: model.base_model.disable_adapter_layers(),
    "merged": lambda model: model.merge_adapter(),
    "scaling": lambda model: _q(model).set_scale("default", 3.0),
    "a third adapter": lambda model: model.add_adapter("third", LoraConfig(r=2, target_modules=["q_proj"])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(model: Any, change: str) -> None:
    layers = Layers(model.get_base_model().model)
    assert layers.are_as_before()
    CHANGES[change](model)
    assert not layers.are_as_before()


@torch.no_grad()
def test_values_may_change(model: Any) -> None:
    layers = Layers(model.get_base_model().model)
    _q(model).base_layer.weight.mul_(2)
    assert layers.are_as_before()


def test_who_watches_is_seen(model: Any) -> None:
    layers = Layers(model.get_base_model().model)
    assert not layers.are_watched()
    with _q(model).register_forward_hook(lambda *_: None):
        assert layers.are_watched()
    with _q(model).register_forward_pre_hook(lambda *_: None):
        assert layers.are_watched()
    with nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert layers.are_watched()
    with FlopCounterMode(display=False), TorchDispatchMode():
        assert layers.are_watched()
    assert not layers.are_watched()
    _q(model)._hf_hook = object()
    assert layers.are_watched()
