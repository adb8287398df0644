"""Models and inputs that a method cannot serve are refused, each with what to do."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from models.DPI.methods import build_method
from models.DPI.patches.Llama import check_config, install, installed_method
from tests.models.DPI.helpers import MakeModel

METHOD = build_method("dpi", {"local_window": 7, "chunk_coe": 11}, 32)
IDS = torch.arange(2, 92).reshape(2, 45)


@pytest.fixture
def model(make_model: MakeModel) -> PreTrainedModel:
    return install(make_model(32), METHOD, 32)


@pytest.mark.parametrize("length", [20, 45])
def test_a_mask_with_a_hole(model: PreTrainedModel, length: int) -> None:
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, 4] = 0
    with pytest.raises(ValueError, match=r"attention_mask has a hole in row 1 .*pad on the left or on the right only"):
        model(IDS[:, :length], attention_mask=mask)


@pytest.mark.parametrize("length", [20, 45])
def test_a_row_without_tokens(model: PreTrainedModel, length: int) -> None:
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0] = 0
    with pytest.raises(ValueError, match=r"no real token in row 0"):
        model(IDS[:, :length], attention_mask=mask)


@pytest.mark.parametrize("length", [20, 45])
def test_packed_positions(model: PreTrainedModel, length: int) -> None:
    positions = torch.cat((torch.arange(9), torch.arange(length - 9)))[None]
    with pytest.raises(ValueError, match=r"packed .* one sequence per row"):
        model(IDS[:, :length], position_ids=positions, use_cache=False)


@pytest.mark.parametrize("length", [20, 45])
@pytest.mark.parametrize("calls_before", [0, 1])
def test_a_mask_of_four_dimensions(model: PreTrainedModel, length: int, calls_before: int) -> None:
    """Also after a good call, whose plan must not serve again."""
    for _ in range(calls_before):
        model(IDS[:, :length])
    with pytest.raises(ValueError, match=r"attention_mask has four dimensions"):
        model(IDS[:, :length], attention_mask=torch.ones(2, 1, length, length, dtype=torch.bool).tril())
    model(IDS[:, :length])


def test_a_mask_that_forgets_the_cache(model: PreTrainedModel) -> None:
    cache = model(IDS[:, :40], use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"covers 5 tokens, fewer than the 40 in the cache and the 5 of this pass"):
        model(IDS[:, 40:], past_key_values=cache, attention_mask=torch.ones(2, 5, dtype=torch.long))


def test_training_with_dropout(make_model: MakeModel) -> None:
    model = install(make_model(32, attention_dropout=0.1), METHOD, 32).train()
    with pytest.raises(
        ValueError, match=r"attention_dropout = 0.1: methods attend without; set attention_dropout = 0.0"
    ):
        model(IDS)


def _config(model_type: str = "llama", **options: Any) -> Any:
    return AutoConfig.for_model(model_type, max_position_embeddings=32, **options)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("mistral", {"sliding_window": 16}),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0}),
        ("qwen3", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0}),
    ],
)
def test_sliding_windows(model_type: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"sliding_window = 16.*set sliding_window = None"):
        check_config(_config(model_type, **options), METHOD)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": False}),
        (
            "qwen2",
            {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1},
        ),  # the first attends fully
    ],
)
def test_sliding_windows_that_are_off(model_type: str, options: dict[str, Any]) -> None:
    check_config(_config(model_type, **options), METHOD)


@pytest.mark.parametrize("model_type", ["gpt2", "falcon", "cohere2"])
def test_other_architectures(model_type: str) -> None:
    with pytest.raises(ValueError, match=rf"model_type is '{model_type}'.*; .* llama, mistral, qwen2, qwen3"):
        check_config(AutoConfig.for_model(model_type), METHOD)


def test_a_refused_install_leaves_the_model_as_it_was(make_model: MakeModel) -> None:
    model = make_model(32)
    expected = model(IDS).logits
    with pytest.raises(ValueError, match=r"attn_impl is 'fast'"):
        install(model, METHOD, 32, attn_impl="fast")
    assert installed_method(model) is None
    assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize("impl", ["triton", "flash"])
@pytest.mark.parametrize("length", [20, 45])
def test_an_implementation_that_cannot_run_raises(make_model: MakeModel, impl: str, length: int) -> None:
    model = install(make_model(32), METHOD, 32, attn_impl=impl)
    with pytest.raises(ValueError, match=rf"attn_impl = '{impl}' cannot run here"):
        model(IDS[:, :length])
