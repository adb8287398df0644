"""Every family against its own stock model, which a method with nothing to change must equal at any length.

NTK and YaRN with factor 1 and SelfExtend with groups of one go through bands, tables and un-rotated caches, and leave
the model's positions as they are: what they compute must be what the stock model computes with its own rotation.
"""

import sys
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Words
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, StaticCache

from models.DPI import dpi, dpi_withoutflash
from models.DPI.losses import token_losses
from models.DPI.methods import METHODS, build_method
from models.DPI.patches import Llama, caches, decoding, forward_pass
from models.DPI.patches.families import FAMILIES, LOCAL, REFUSED, kinds_of_layers, stock_attention_of
from models.DPI.patches.Llama import check_config, install, observe, replays_decoding, uninstall
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
    "attention_dropout": 0.0,
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
    "cohere": {"logit_scale": 0.3},
    "gemma3_text": {
        "sliding_window": 16,
        "layer_types": MIXED,
        "query_pre_attn_scalar": 12,
        "final_logit_softcapping": 4.0,
    },
    "ministral": {"sliding_window": 16, "layer_types": MIXED},
    "qwen2_moe": {"use_sliding_window": False, "sliding_window": 16},
    "olmo3": {"sliding_window": 16, "layer_types": MIXED},
    "smollm3": {"no_rope_layers": [1, 0, 1], "layer_types": ["full_attention"] * 3},
    "seed_oss": {"residual_dropout": 0.0},
    # Half of a head rotates.
    "phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    "phi3": {"partial_rotary_factor": 0.5, "original_max_position_embeddings": WINDOW},
    "glm": {"partial_rotary_factor": 0.5},
    "glm4": {"partial_rotary_factor": 0.5},
    "stablelm": {"partial_rotary_factor": 0.5},
    "gpt_neox": {"rotary_pct": 0.5},
    "nemotron": {"partial_rotary_factor": 0.5},
    "gemma2": {
        "sliding_window": 16,
        "layer_types": MIXED,
        "query_pre_attn_scalar": 17,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
    },
    "vaultgemma": {
        "sliding_window": 16,
        "layer_types": ["full_attention"] * 3,
        "attn_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 9,
    },
    "gpt_oss": {
        "sliding_window": 16,
        "layer_types": MIXED,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},  # it would be YaRN
    },
    "granite": {"attention_multiplier": 0.4, "logits_scaling": 3.0},
    "granitemoe": {"attention_multiplier": 0.4, "logits_scaling": 3.0},
}
NOTHING_TO_CHANGE: dict[str, dict[str, Any]] = {
    "repro_ntk": {"factor": 1.0},
    "repro_yarn": {"factor": 1.0},
    "repro_se": {"group_size": 1, "window_size": 9},
}


def make(model_type: str, **options: Any) -> PreTrainedModel:
    """A random model of a family."""
    experts = EXPERTS if "moe" in model_type or model_type in ("mixtral", "gpt_oss") else {}
    torch.manual_seed(20)
    keys = SHAPE | experts | OWN.get(model_type, {}) | options
    if model_type == "gpt_neox":  # its configuration has no such key
        del keys["num_key_value_heads"]
    stock = keys.pop("attn_implementation", "sdpa")
    config = AutoConfig.for_model(model_type, **keys)
    stock = stock_attention_of(config, stock)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=stock).eval()
    return model


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One of each family."""
    return make(request.param)


def _close(found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max()) / 5  # families differ in how large their logits are
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING * max(1.0, scale))


@pytest.mark.parametrize("stock", ["sdpa", "eager"])
def test_within_the_window_it_is_the_stock_model(model: PreTrainedModel, stock: str) -> None:
    """To the bit: whole, padded, in pieces, and generated."""
    model.set_attn_implementation(stock_attention_of(model.config, stock))
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


@pytest.mark.parametrize("length", [20, 50])
def test_layers_that_run_again_have_their_own_pass(model: PreTrainedModel, length: int) -> None:
    """Gradient checkpointing, with another forward pass before the backward pass."""
    ids = tokens(2, length)

    def gradient() -> Tensor:
        model.zero_grad()
        loss = model(ids, labels=ids, use_cache=False).loss
        model(ids[:, :9], use_cache=False)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    put(model, "dpi", CHUNKS).train()
    expected = gradient()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradient()
    assert float((found - expected).norm()) < 1e-4 * float(expected.norm())


def test_losses_are_those_of_the_models_own_logits(model: PreTrainedModel) -> None:
    """Whatever a family does to logits behind its head."""
    ids = tokens(2, 50)
    expected = -logits(model, ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(token_losses(model, ids, 7), expected, rtol=1e-4, atol=1e-4)


def test_only_models_with_one_plan_replay_decoding(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local layers refuse static caches, and layers without positions have a plan of their own."""
    monkeypatch.setattr(decoding, "can_record", lambda device: True)
    monkeypatch.setattr(decoding.api, "choose", lambda *args: "triton")
    put(model)
    one_plan = LOCAL not in kinds_of_layers(model.config) and model.config.model_type != "smollm3"
    assert replays_decoding(model, 50) == one_plan


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


@pytest.mark.parametrize(
    ("model_type", "options", "said"),
    [
        ("exaone4", {"sliding_window": 16, "layer_types": MIXED}, r"exaone4' with sliding_window = 16"),
        ("exaone4", {"sliding_window": 16}, r"exaone4' with sliding_window = 16"),
        ("gemma", {"use_bidirectional_attention": True}, r"use_bidirectional_attention is set"),
        ("gemma3_text", {"use_bidirectional_attention": True}, r"use_bidirectional_attention is set"),
    ],
)
def test_configurations_that_cannot_work(model_type: str, options: dict[str, Any], said: str) -> None:
    config = AutoConfig.for_model(model_type, **(SHAPE | OWN[model_type] if model_type in OWN else SHAPE) | options)
    with pytest.raises(ValueError, match=said):
        check_config(config, build_method("dpi", CHUNKS))


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "gpt_oss", "vaultgemma"])
@pytest.mark.parametrize("name", ["dpi", "repro_chunkllama"])
def test_gradients_are_those_of_the_dense_computation_in_fp64(model_type: str, name: str) -> None:
    """Of every parameter, sinks too; PyTorch's kernels in fp32 against all logits formed in fp64."""
    ids, mask = padded([57, 40])

    def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
        out = model(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
        (out.log_softmax(-1) * torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype)).sum().backward()
        return {key: x.grad.double() for key, x in model.named_parameters() if x.grad is not None}

    found = gradients(put(make(model_type), name, attn_impl="sdpa"))
    dense = make(model_type).double()
    if model_type == "gpt_oss":
        dense.set_experts_implementation("eager")  # the others know no fp64
    expected = gradients(put(dense, name, attn_impl="reference"))
    assert found.keys() == expected.keys()
    assert any("sinks" in key for key in found) == (model_type == "gpt_oss")
    for key, right in expected.items():
        assert float((found[key] - right).norm()) <= 1e-4 * float(right.norm()) + 1e-7, key


def test_feed_forward_blocks_in_pieces(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokens(2, 50)
    put(model)
    expected = logits(model, ids)
    monkeypatch.setattr(Llama, "_FEED_FORWARD_TOKENS", {"cpu": 7})
    _close(logits(model, ids), expected)


@pytest.mark.parametrize("model_type", [name for name, family in FAMILIES.items() if not family.plain_softmax])
@pytest.mark.parametrize("name", ["dpi", "repro_se"])
def test_no_layer_forms_all_logits(model_type: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the stock attention would, layers that attend locally go over bands, in pieces and in padded batches."""
    model = make(model_type)
    ids, mask = padded([77, 40, 12])
    if name == "dpi":
        put(model, name, CHUNKS, attn_impl="sdpa")
    else:
        put(model, name, NOTHING_TO_CHANGE[name], attn_impl="sdpa")
    expected = logits(model, ids, attention_mask=mask)[mask.bool()]
    pieces = in_pieces(model, ids, [0, 66, 71, 72, 77], mask)[mask.bool()] if name == "repro_se" else expected
    _close(pieces, expected)

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the stock attention ran")

    monkeypatch.setattr(forward_pass, "eager_attention_of", lambda attention: never)
    _close(logits(model, ids, attention_mask=mask)[mask.bool()], expected)
    with pytest.raises(AssertionError, match="stock attention"):
        logits(put(model, "dpi", CHUNKS), ids[:, -WINDOW:])


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss"])
def test_no_stock_attention_that_leaves_the_cap_or_the_sinks_out(model_type: str) -> None:
    model = make(model_type)
    model.config._attn_implementation = "sdpa"  # older versions of transformers let it be chosen
    with pytest.raises(ValueError, match=r"sdpa.* attn_implementation = 'eager'"):
        put(model)


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss"])
def test_no_observer_of_a_softmax_that_is_not_plain(model_type: str) -> None:
    model = put(make(model_type, layer_types=["full_attention"] * 3))
    with pytest.raises(ValueError, match="soft cap or sinks"), observe(model, lambda *args: None):
        pass


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss", "vaultgemma"])
@pytest.mark.parametrize("module", [dpi, dpi_withoutflash])
def test_loading_takes_the_stock_attention_that_there_is(model_type: str, module: Any, tmp_path: Any) -> None:
    make(model_type).save_pretrained(tmp_path)
    words = Words(WordLevel({f"<{i}>": i for i in range(9)}, unk_token="<0>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<2>").save_pretrained(tmp_path)
    model, _ = module.get_model_and_tokenizer(str(tmp_path), None, "dpi", CHUNKS, WINDOW, device="cpu")
    ids = tokens(1, 50)
    _close(logits(model, ids), logits(put(make(model_type), "dpi", CHUNKS), ids))


def test_a_static_cache_of_a_model_with_local_layers() -> None:
    model = put(make("gemma3_text"))
    assert LOCAL in model.config.layer_types
    with pytest.raises(ValueError, match=r"static cache .* use the default cache"):
        model(tokens(1, 50), past_key_values=StaticCache(config=model.config, max_cache_len=96))


def test_an_attention_that_does_not_ask_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Nemotron's in old versions of transformers, which a method would change in half."""
    model = make("nemotron")
    monkeypatch.delattr(sys.modules[type(model).__module__], "ALL_ATTENTION_FUNCTIONS")
    with pytest.raises(ValueError, match=r"transformers \d.* NemotronModel .*take a newer version"):
        put(model)


def test_a_cache_under_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = put(make("llama"))
    cache = model(tokens(1, 40), use_cache=True).past_key_values
    monkeypatch.setattr(caches, "NAMES", ("another name",))
    with pytest.raises(ValueError, match=r"layer 0 has 43 keys for 3 tokens, and no cache"):
        model(tokens(1, 3), past_key_values=cache)


def test_a_model_of_local_layers_alone() -> None:
    with pytest.raises(ValueError, match=r"every layer attends within sliding_window = 16"):
        install(make("olmo3", layer_types=["sliding_attention"] * 3), build_method("dpi", CHUNKS), WINDOW)
