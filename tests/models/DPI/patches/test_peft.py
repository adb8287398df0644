"""LoRA on a model with a method: installed on the wrapped model, trained beyond the window, taken off again."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from models.DPI.methods import build_method
from models.DPI.patches.Llama import install, installed_method, uninstall
from tests.models.DPI.helpers import CHUNK_FREE, CHUNKS, WINDOW, MakeModel, logits, tokens


def _wrapped(make_model: MakeModel) -> Any:
    """Adapters that change something from the start."""
    model = get_peft_model(make_model(WINDOW), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_install_takes_a_wrapped_model(make_model: MakeModel) -> None:
    model, ids = _wrapped(make_model), tokens(1, 50)
    stock = logits(model, ids)
    assert install(model, build_method("dpi", CHUNK_FREE), WINDOW) is model
    assert installed_method(model) is installed_method(model.get_base_model())
    found = logits(model, ids)
    assert not torch.equal(found, stock)
    uninstall(model)
    assert torch.equal(logits(model, ids), stock)
    install(model.get_base_model(), build_method("dpi", CHUNK_FREE), WINDOW)
    assert torch.equal(logits(model, ids), found)


@pytest.mark.parametrize("params", [CHUNK_FREE, CHUNKS], ids=["chunk-free", "chunks"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_adapters_get_their_gradients(make_model: MakeModel, params: dict[str, Any], checkpointing: bool) -> None:
    """Beyond the window: those of the definition in fp64, with another forward pass before the backward pass."""
    ids = tokens(2, 61)
    gradients = []
    for dtype, impl in ((torch.float32, "auto"), (torch.float64, "reference")):
        model = _wrapped(make_model).to(dtype).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        install(model, build_method("dpi", params), WINDOW, attn_impl=impl)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        model(input_ids=ids[:, :20], labels=ids[:, :20], use_cache=False)
        loss.backward()
        gradients.append({name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None})
    found, expected = gradients
    assert found.keys() == expected.keys()
    assert found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("length", [WINDOW - 5, 50], ids=["within", "beyond"])
def test_prefix_tuning_is_refused(make_model: MakeModel, length: int) -> None:
    """Its keys belong to no token and are rotated as the stock model rotates."""
    model: Any = get_peft_model(make_model(WINDOW), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    ids = tokens(3, length)
    model(input_ids=ids)
    install(model, build_method("dpi", CHUNK_FREE), WINDOW)
    with pytest.raises(ValueError, match="prefix tuning"):
        model(input_ids=ids)
    uninstall(model)
    model(input_ids=ids)
