"""A method on a model and off again: what must stay the stock model to the bit, and what must not."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, LlamaForCausalLM, PreTrainedModel

from models.DPI.methods import METHODS, build_method
from models.DPI.patches import Llama as llama_patch
from models.DPI.patches.Llama import install, installation_of, installed_method, uninstall
from tests.models.DPI import helpers
from tests.models.DPI.helpers import CHUNKS, MODEL_TYPES, PARAMS, ROUNDING, WINDOW, MakeModel, logits, padded, tokens


def put(model: PreTrainedModel, name: str, window: int = WINDOW, impl: str = "auto", **params: Any) -> PreTrainedModel:
    """GALI in chunks of eleven; some parameters may be others."""
    usual = CHUNKS if name == "dpi" else PARAMS[name]
    return helpers.put(model, name, usual | params, window, attn_impl=impl)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("stock", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["dpi", "repro_dynamic_ntk", "repro_original"])
def test_within_the_window_it_is_the_stock_model(
    make_model: MakeModel, model_type: str, dtype: torch.dtype, stock: str, name: str
) -> None:
    """Logits bit for bit: whole, in pieces, left-padded, and generated tokens with their scores."""
    model = make_model(WINDOW, model_type, dtype)
    model.set_attn_implementation(stock)
    ids, mask = padded([13, 21])
    full = tokens(2, WINDOW)

    def everything() -> list[Tensor]:
        out = [logits(model, full), logits(model, ids, attention_mask=mask)]
        cache = None
        with torch.no_grad():
            for first, last in ((0, 5), (5, 6), (6, 19), (19, 32)):
                step = model(full[:, first:last], past_key_values=cache, use_cache=True)
                cache = step.past_key_values
                out.append(step.logits)
        made = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=WINDOW - 21,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return [*out, made.sequences, *made.logits]

    expected = everything()
    put(model, name)
    found = everything()
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_beyond_the_window_it_is_not(make_model: MakeModel, name: str) -> None:
    model = make_model(WINDOW)
    ids = tokens(1, 75)
    stock = logits(model, ids)
    changed = float((logits(put(model, name), ids) - stock).abs().max())
    assert changed == 0 if name == "repro_original" else changed > 0.05


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_uninstall_gives_the_stock_model_back(make_model: MakeModel, name: str, model_type: str) -> None:
    model = make_model(WINDOW, model_type)
    ids = tokens(1, 75)
    rotary, implementation, attributes = model.model.rotary_emb, model.config._attn_implementation, set(vars(model))
    registries = [set(r._global_mapping) for r in (AttentionInterface, AttentionMaskInterface)]
    expected = logits(model, ids)
    put(model, name)
    method = installed_method(model)
    assert method is not None
    assert method.name == name
    logits(model, ids)
    assert uninstall(model) is model
    assert installed_method(model) is None
    assert torch.equal(logits(model, ids), expected)
    assert model.model.rotary_emb is rotary
    assert model.config._attn_implementation == implementation
    assert set(vars(model)) == attributes
    assert [set(r._global_mapping) for r in (AttentionInterface, AttentionMaskInterface)] == registries
    assert uninstall(model) is model


def test_installing_again_replaces_the_method(make_model: MakeModel) -> None:
    model = make_model(WINDOW)
    ids = tokens(1, 75)
    stock = logits(model, ids)
    expected = logits(put(model, "repro_yarn"), ids)
    count = len(AttentionInterface._global_mapping)
    for name in ("dpi", "repro_se", "repro_yarn"):
        put(model, name)
    assert torch.equal(logits(model, ids), expected)
    assert len(AttentionInterface._global_mapping) == count
    assert torch.equal(logits(uninstall(model), ids), stock)


def test_two_models_in_one_process(make_model: MakeModel) -> None:
    """Steps of two methods and of a stock model, interleaved, with caches that go on."""
    names = ["dpi", "repro_se", "repro_ntk", None]
    ids = tokens(1, 60)

    def alone(name: str | None) -> list[Tensor]:
        model = make_model(WINDOW) if name is None else put(make_model(WINDOW), name)
        return list(steps(model))

    def steps(model: PreTrainedModel) -> Any:
        cache = None
        for first, last in ((0, 40), (40, 41), (41, 55), (55, 60)):
            with torch.no_grad():
                out = model(ids[:, first:last], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            yield out.logits

    expected = [alone(name) for name in names]
    runs = [steps(make_model(WINDOW) if name is None else put(make_model(WINDOW), name)) for name in names]
    found = list(zip(*[tuple(piece) for piece in zip(*runs, strict=True)], strict=True))
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


def test_a_config_shared_with_an_installed_model_is_refused(make_model: MakeModel) -> None:
    first = make_model(WINDOW)
    second = LlamaForCausalLM(first.config).eval()
    third = LlamaForCausalLM(copy.deepcopy(first.config)).eval()
    put(first, "dpi")
    with pytest.raises(ValueError, match="shares its config object"):
        put(second, "repro_se")
    put(third, "repro_se")
    put(uninstall(first) and second, "repro_se")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("length", [7, 32, 90])
def test_selfextend_in_groups_of_one_is_the_stock_model(make_model: MakeModel, model_type: str, length: int) -> None:
    model = make_model(WINDOW, model_type)
    ids = tokens(2, length)
    expected = logits(model, ids)
    found = logits(put(model, "repro_se", group_size=1), ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_chunkllama_near_its_first_chunk_is_the_stock_model(make_model: MakeModel, model_type: str) -> None:
    """Distances are true up to 3W/4, in the first chunk (19 tokens here) and from the second to the first."""
    model = make_model(WINDOW, model_type)
    ids, exact = tokens(2, WINDOW), 3 * WINDOW // 4 + 1
    stock = logits(model, ids)
    found = logits(put(model, "repro_chunkllama"), ids)
    torch.testing.assert_close(found[:, :exact], stock[:, :exact], rtol=0, atol=ROUNDING)
    assert float((found - stock)[:, exact:].abs().max()) > 0.05


@pytest.mark.parametrize("name", ["repro_ntk", "repro_yarn", "repro_dynamic_ntk", "repro_original"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_frequency_methods_are_those_of_transformers(make_model: MakeModel, name: str, model_type: str) -> None:
    """The same model built by transformers with its own rope scaling, in one pass beyond the window."""
    length, factor, dim, theta = 75, 4.0, 12, 10_000.0
    scaled = {"rope_theta": theta, "factor": factor, "original_max_position_embeddings": WINDOW}
    parameters = {
        "repro_ntk": {"rope_type": "default", "rope_theta": theta * factor ** (dim / (dim - 2))},
        "repro_yarn": {"rope_type": "yarn", **scaled},
        "repro_dynamic_ntk": {"rope_type": "dynamic", **scaled},
        "repro_original": {"rope_type": "default", "rope_theta": theta},
    }[name]
    ids = tokens(2, length)
    expected = logits(make_model(WINDOW, model_type, rope_parameters=parameters), ids)
    plain = make_model(WINDOW, model_type, rope_parameters={"rope_type": "default", "rope_theta": theta})
    torch.testing.assert_close(logits(put(plain, name), ids), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("rope_type", ["linear", "llama3", "yarn"])
def test_static_rope_scaling_of_the_model_is_kept(make_model: MakeModel, rope_type: str) -> None:
    """Within the window and, by SelfExtend in groups of one, through the bands."""
    parameters = {
        "rope_type": rope_type,
        "rope_theta": 10_000.0,
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    if rope_type != "llama3":
        parameters = {k: v for k, v in parameters.items() if not k.endswith("freq_factor")}
    model = make_model(WINDOW, rope_parameters=parameters)
    short, long = tokens(1, WINDOW), tokens(1, 70)
    expected = logits(model, short), logits(model, long)
    assert torch.equal(logits(put(model, "dpi"), short), expected[0])
    found = logits(put(model, "repro_se", group_size=1), long)
    torch.testing.assert_close(found, expected[1], rtol=0, atol=ROUNDING)


def test_a_model_cast_to_bf16_keeps_exact_frequencies(make_model: MakeModel) -> None:
    """`model.bfloat16()` rounds the stock buffers too; the bands are not built from them."""
    found = [installation_of(put(model, "repro_se")) for model in (make_model(WINDOW), make_model(WINDOW).bfloat16())]
    assert found[0] is not None
    assert found[1] is not None
    exact, cast = (installation.rope.inv_freq for installation in found)
    assert torch.equal(cast, exact)
    expected = torch.tensor([10_000.0 ** (-f / 6) for f in range(6)])
    torch.testing.assert_close(exact, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("window", [16, 48])
def test_the_window_is_the_one_given(make_model: MakeModel, window: int) -> None:
    """W need not be the configuration's; it is the configuration's when None."""
    model = make_model(WINDOW)
    ids = tokens(1, 60)
    put(model, "dpi", window=window)
    within, beyond = logits(model, ids[:, :window]), logits(model, ids[:, : window + 1])
    uninstall(model)
    assert torch.equal(within, logits(model, ids[:, :window]))
    assert float((beyond - logits(model, ids[:, : window + 1])).abs().max()) > 0.01
    by_default = logits(install(model, build_method("dpi", CHUNKS)), ids)
    assert torch.equal(by_default, logits(put(model, "dpi", window=WINDOW), ids))
    assert not torch.equal(by_default, logits(put(model, "dpi", window=window), ids))


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_materialised_attention_gives_its_weights(make_model: MakeModel, name: str, model_type: str) -> None:
    """`output_attentions=True`: one softmax a row, causal, nothing on padding; the same logits as in O(N) memory."""
    model = make_model(WINDOW, model_type)
    ids, mask = padded([61, 20, 43])
    expected = logits(put(model, name, impl="sdpa"), ids, attention_mask=mask)
    model = uninstall(model)
    model.set_attn_implementation("eager")
    put(model, name, impl="reference")
    for length in (61, 20):  # beyond the window, and within it, where the stock attention runs
        with torch.no_grad():
            out = model(ids[:, -length:], attention_mask=mask[:, -length:], output_attentions=True)
        assert len(out.attentions) == 2
        real = mask[:, -length:].bool()
        for p in out.attentions:
            assert p.shape == (3, 4, length, length)
            sums = p.sum(-1).transpose(1, 2)[real]
            torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)
            assert not p.triu(1).transpose(1, 2)[real].any()
            assert not p.masked_fill(real[:, None, None, :], 0).transpose(1, 2)[real].any()
        if length == 61:
            torch.testing.assert_close(out.logits[real], expected[real], rtol=0, atol=ROUNDING)


def test_asking_for_weights_that_are_not_formed_is_said(
    make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    model = put(make_model(WINDOW), "dpi")
    model(tokens(1, 40), output_attentions=True)
    assert "load it with models.DPI.dpi_withoutflash" in caplog.text


def test_feed_forward_blocks_in_slices_change_nothing(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(window=16)
    ids = torch.arange(3, 40)[None]
    install(model, build_method("dpi", {"chunk_coe": 1, "local_window": 5}), 16)
    whole = model(ids).logits
    seen: list[int] = []
    model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    monkeypatch.setattr(llama_patch, "_FEED_FORWARD_TOKENS", {"cpu": 9})
    torch.testing.assert_close(logits(model, ids), whole, rtol=0, atol=1e-5)
    assert seen == [9, 9, 9, 9, 1]
    seen.clear()
    model(ids[:, :16])  # within the window the stock model's arithmetic stays as it is
    assert seen == [16]
    uninstall(model)
    assert "forward" not in vars(model.model.layers[0].mlp)


def test_a_deep_copy_attends_on_its_own(make_model: MakeModel) -> None:
    model = put(make_model(WINDOW), "dpi")
    stock = logits(make_model(WINDOW), tokens(1, 61))
    ids, other = tokens(1, 61), tokens(1, 45, seed=1)
    expected = logits(model, ids)
    twin = copy.deepcopy(model)
    logits(model, other)  # plans a pass of another length
    assert torch.equal(logits(twin, ids), expected)
    uninstall(model)
    assert torch.equal(logits(twin, ids), expected)
    assert torch.equal(logits(uninstall(twin), ids), stock)
