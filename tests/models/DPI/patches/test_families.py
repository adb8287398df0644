"""Every family against its own stock model, which a method with nothing to change must equal at any length.

NTK and YaRN with factor 1 and SelfExtend with groups of one go through bands, tables and un-rotated caches, and leave
the model's positions as they are: what they compute must be what the stock model computes with its own rotation.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, StaticCache

from models.DPI.methods import METHODS, build_method
from models.DPI.patches.families import FAMILIES, LOCAL, REFUSED
from models.DPI.patches.Llama import check_config, install, uninstall
from tests.models.DPI.helpers import CHUNKS, PARAMS, ROUNDING, WINDOW, in_pieces, logits, padded, put, tokens

SHAPE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": WINDOW,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "sliding_window": None,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
OWN: dict[str, dict[str, Any]] = {
    "exaone4": {"layer_types": ["full_attention"] * 3},
    "gemma3_text": {"sliding_window": 16, "layer_types": MIXED, "query_pre_attn_scalar": 12},
    "ministral": {"sliding_window": 16, "layer_types": MIXED},
    "qwen2_moe": {"use_sliding_window": False, "sliding_window": 16},
    "olmo3": {"sliding_window": 16, "layer_types": MIXED},
    "smollm3": {"no_rope_layers": [1, 0, 1], "layer_types": ["full_attention"] * 3},
    # Half of a head rotates.
    "phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    "phi3": {"partial_rotary_factor": 0.5, "original_max_position_embeddings": WINDOW},
    "glm": {"partial_rotary_factor": 0.5},
    "glm4": {"partial_rotary_factor": 0.5},
    "stablelm": {"partial_rotary_factor": 0.5},
    "gpt_neox": {"rotary_pct": 0.5},
    "nemotron": {"partial_rotary_factor": 0.5},
    "granite": {"attention_multiplier": 0.4},
    "granitemoe": {"attention_multiplier": 0.4},
}
NOTHING_TO_CHANGE: dict[str, dict[str, Any]] = {
    "repro_ntk": {"factor": 1.0},
    "repro_yarn": {"factor": 1.0},
    "repro_se": {"group_size": 1, "window_size": 9},
}


def make(model_type: str, **options: Any) -> PreTrainedModel:
    """A random model of a family."""
    experts = EXPERTS if "moe" in model_type or model_type == "mixtral" else {}
    torch.manual_seed(20)
    config = AutoConfig.for_model(model_type, **(SHAPE | experts | OWN.get(model_type, {}) | options))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One of each family."""
    return make(request.param)


def _close(found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max()) / 5  # families differ in how large their logits are
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING * max(1.0, scale))


def test_within_the_window_it_is_the_stock_model(model: PreTrainedModel) -> None:
    """To the bit: whole, padded, in pieces, and generated."""
    ids, mask = padded([13, 21])

    def everything() -> list[Tensor]:
        generated = model.generate(tokens(2, 9), max_new_tokens=8, do_sample=False)  # type: ignore[operator]
        pieces = in_pieces(model, tokens(2, 25), [0, 11, 12, 25])
        return [
            logits(model, tokens(2, WINDOW)),
            logits(model, ids, attention_mask=mask)[mask.bool()],
            pieces,
            generated,
        ]

    expected = everything()
    put(model)
    assert all(torch.equal(found, stock) for found, stock in zip(everything(), expected, strict=True))
    uninstall(model)
    assert all(torch.equal(found, stock) for found, stock in zip(everything(), expected, strict=True))


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
@pytest.mark.parametrize("name", NOTHING_TO_CHANGE)
def test_with_nothing_to_change_it_is_the_stock_model_at_any_length(
    model: PreTrainedModel, name: str, impl: str
) -> None:
    ids, mask = padded([77, 40])
    whole, rows = logits(model, ids[:1]), logits(model, ids, attention_mask=mask)[mask.bool()]
    put(model, name, NOTHING_TO_CHANGE[name], attn_impl=impl)
    _close(logits(model, ids[:1]), whole)
    _close(logits(model, ids, attention_mask=mask)[mask.bool()], rows)
    _close(in_pieces(model, ids[:1], [0, 30, 50, 51, 52, 77]), whole)


@pytest.mark.parametrize("name", METHODS)
def test_rows_pieces_and_implementations_agree(model: PreTrainedModel, name: str) -> None:
    """Beyond the window: a padded batch equals its rows, decoding equals prefill, O(N) memory equals the definition."""
    put(model, name, attn_impl="sdpa")
    ids, mask = padded([77, 40])
    batch = logits(model, ids, attention_mask=mask)
    _close(batch[1, -40:], logits(model, ids[1:, -40:])[0])
    _close(batch[:1], logits(model, ids[:1]))
    if build_method(name, PARAMS[name]).is_causal():
        _close(in_pieces(model, ids[:1], [0, 20, 50, 51, 52, 77]), batch[:1])
    put(model, name, attn_impl="reference")
    _close(logits(model, ids, attention_mask=mask)[mask.bool()], batch[mask.bool()])


def test_a_method_changes_something(model: PreTrainedModel) -> None:
    ids = tokens(1, 77)
    stock = logits(model, ids)
    put(model, "dpi", CHUNKS)
    changed = (logits(model, ids) - stock).abs().amax(-1)[0]
    assert float(changed[:WINDOW].max()) < ROUNDING * float(stock.abs().max())
    assert float(changed[WINDOW:].max()) > 1e-2


@pytest.mark.parametrize("model_type", REFUSED)
def test_families_that_cannot_work_are_refused_with_the_reason(model_type: str) -> None:
    method = build_method("dpi", CHUNKS)
    with pytest.raises(ValueError, match=rf"model_type is '{model_type}' \(.*\); methods can be installed on llama"):
        check_config(AutoConfig.for_model(model_type), method)


def test_a_static_cache_of_a_model_with_local_layers() -> None:
    model = put(make("gemma3_text"))
    assert LOCAL in model.config.layer_types
    with pytest.raises(ValueError, match=r"static cache .* use the default cache"):
        model(tokens(1, 50), past_key_values=StaticCache(config=model.config, max_cache_len=96))


def test_a_model_of_local_layers_alone() -> None:
    with pytest.raises(ValueError, match=r"every layer attends within sliding_window = 16"):
        install(make("olmo3", layer_types=["sliding_attention"] * 3), build_method("dpi", CHUNKS), WINDOW)
