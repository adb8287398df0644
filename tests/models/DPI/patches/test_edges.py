"""What nobody asked for: other threads, shared configurations, caches of others, copies, and models that are gone."""

import copy
import functools
import gc
import threading
import weakref
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from models.DPI.methods import METHODS, build_method
from models.DPI.patches.Llama import install, installed_method, uninstall
from tests.models.DPI.helpers import CHUNK_FREE, CHUNKS, PARAMS, WINDOW, MakeModel, logits, put, tokens

BEYOND = tokens(1, 50)
REFUSED = "this model was made from the configuration of a model that has a method"


@pytest.mark.parametrize("name", METHODS)
def test_a_deleted_model_is_gone(make_model: MakeModel, name: str) -> None:
    """At once, without uninstalling and without the garbage collector; generation leaves nothing behind either."""
    model = put(make_model(WINDOW), name)
    model.generate(BEYOND, max_new_tokens=3, do_sample=False)  # type: ignore[operator]
    references = [weakref.ref(model), weakref.ref(model.base_model), weakref.ref(next(model.parameters()))]
    gc.collect()
    gc.disable()
    try:
        del model
        assert [reference() for reference in references] == [None, None, None]
    finally:
        gc.enable()


def test_threads_have_a_pass_each(make_model: MakeModel) -> None:
    """Rows of other lengths, within the window and beyond, at the same time on one model."""
    model = put(make_model(WINDOW), "dpi", CHUNKS)
    inputs = [tokens(1, length, seed=length) for length in (20, 41, 55, 70)]
    expected = [logits(model, ids) for ids in inputs]
    wrong: list[int] = []

    def work(first: int) -> None:
        for turn in range(40):
            at = (first + turn) % len(inputs)
            if not torch.equal(logits(model, inputs[at]), expected[at]):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("order", ["made before", "made after", "made from the model's"])
def test_another_model_of_the_same_configuration(make_model: MakeModel, order: str) -> None:
    """It attends as the stock model or raises, and the model with the method is not disturbed."""
    expected = logits(put(make_model(WINDOW)), BEYOND)
    model = make_model(WINDOW)
    other = AutoModelForCausalLM.from_config(model.config).eval() if order == "made before" else None
    put(model)
    if other is None:
        other = AutoModelForCausalLM.from_config(model.config).eval()
    with pytest.raises(ValueError, match=REFUSED):
        logits(other, BEYOND)
    with pytest.raises(ValueError, match=r"shares its config object .*copy\.deepcopy"):
        put(other, "repro_se")
    assert torch.equal(logits(model, BEYOND), expected)
    uninstall(model)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, BEYOND), logits(model, BEYOND))


def test_a_saved_model_is_the_stock_model(make_model: MakeModel, tmp_path: Any) -> None:
    model = make_model(WINDOW)
    stock = logits(model, BEYOND)
    put(model).save_pretrained(tmp_path)
    found = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert installed_method(found) is None
    assert torch.equal(logits(found, BEYOND), stock)


def test_a_model_sent_to_another_process_keeps_its_method(make_model: MakeModel) -> None:
    model = put(make_model(WINDOW))
    expected = logits(model, BEYOND)
    found = ForkingPickler.loads(ForkingPickler.dumps(model))
    assert torch.equal(logits(found, BEYOND), expected)
    uninstall(model)
    assert torch.equal(logits(found, BEYOND), expected)


def _stock(model: PreTrainedModel) -> PreTrainedModel:
    return uninstall(model)


def _other_parameters(model: PreTrainedModel) -> PreTrainedModel:
    return put(model, "dpi", CHUNKS)


@pytest.mark.parametrize(
    ("before", "after"),
    [(_stock, put), (put, _stock), (put, _other_parameters)],
    ids=["across install", "across uninstall", "across methods"],
)
@pytest.mark.parametrize("length", [20, 40])
def test_a_cache_does_not_cross(
    make_model: MakeModel,
    length: int,
    before: Callable[[PreTrainedModel], PreTrainedModel],
    after: Callable[[PreTrainedModel], PreTrainedModel],
) -> None:
    """Its keys are rotated in one way; an emptied one serves anybody."""
    model = before(make_model(WINDOW))
    cache = model(tokens(1, length), use_cache=True).past_key_values
    after(model)
    with pytest.raises(ValueError, match=r"past_key_values holds .*feed the tokens anew"):
        model(tokens(1, 3), past_key_values=cache)
    cache.crop(-length)
    again = model(BEYOND, past_key_values=cache).logits
    assert torch.equal(again, logits(model, BEYOND))


def test_a_copied_cache_goes_on_alone(make_model: MakeModel) -> None:
    model = put(make_model(WINDOW))
    ids = tokens(1, 60)
    with torch.no_grad():
        cache = model(ids[:, :40], use_cache=True).past_key_values
        twin = copy.deepcopy(cache)
        first = model(ids[:, 40:50], past_key_values=cache).logits
        second = model(ids[:, 40:50], past_key_values=twin).logits
        assert torch.equal(first, second)
        both = model(ids[:, 50:], past_key_values=twin).logits
    torch.testing.assert_close(both, logits(model, ids)[:, 50:], rtol=0, atol=1e-4)


def test_given_keys_are_refused(make_model: MakeModel) -> None:
    """Prefix tuning gives keys that no token has, rotated as the stock model rotates."""
    model = put(make_model(WINDOW))
    keys = torch.randn(1, 2, 4, 12)
    cache = DynamicCache([(keys, keys), (keys, keys)])
    with pytest.raises(ValueError, match=r"past_key_values holds 4 tokens .*prefix tuning"):
        model(BEYOND, past_key_values=cache)


@pytest.mark.parametrize("length", [20, 45])
def test_positions_that_a_method_would_ignore(make_model: MakeModel, length: int) -> None:
    model = put(make_model(WINDOW))
    ids = tokens(1, length)
    with pytest.raises(ValueError, match=r"position_ids of row 0 are 5 away"):
        model(ids, position_ids=torch.arange(5, 5 + length)[None])
    counted = model(ids, position_ids=torch.arange(length)[None]).logits
    assert torch.equal(counted, model(ids).logits)


@pytest.mark.parametrize("window", [1.5, 0, -3, "32", True, 10**30])
@pytest.mark.parametrize("name", METHODS)
def test_windows_that_are_none(make_model: MakeModel, name: str, window: Any) -> None:
    """Checked by `install` as by every other way in."""
    model = make_model(WINDOW)
    with pytest.raises(ValueError, match=r"max_position_embeddings = .* must be at least 1, a whole number of tokens"):
        install(model, build_method(name, PARAMS[name]), window)
    assert installed_method(model) is None


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("repro_se", {"group_size": 2, "window_size": WINDOW}),
        ("dpi", {"local_window": WINDOW}),
        ("repro_chunkllama", {"local_window": 3 * WINDOW // 4}),
    ],
)
def test_install_checks_the_window(make_model: MakeModel, name: str, params: dict[str, Any]) -> None:
    model = make_model(WINDOW)
    with pytest.raises(ValueError, match=rf"params of method '{name}': .* must be smaller than"):
        install(model, build_method(name, params), WINDOW)
    assert installed_method(model) is None


@pytest.mark.parametrize(
    ("name", "params"),
    [("dpi", CHUNK_FREE), ("dpi", CHUNKS), *((name, PARAMS[name]) for name in METHODS if name != "dpi")],
    ids=["dpi chunk-free", "dpi in chunks", *(name for name in METHODS if name != "dpi")],
)
@pytest.mark.parametrize("how", ["assistant", "prompt lookup"])
def test_assisted_generation_gives_the_same_text_or_is_refused(
    make_model: MakeModel, name: str, params: dict[str, Any], how: str
) -> None:
    model: Any = put(make_model(WINDOW), name, params)
    ids = tokens(1, 40).repeat(1, 2)
    options = {"do_sample": False, "max_new_tokens": 12}
    help_of = {"assistant_model": make_model(WINDOW)} if how == "assistant" else {"prompt_lookup_num_tokens": 3}
    method = installed_method(model)
    assert method is not None
    if method.is_causal():
        expected = model.generate(ids, **options)
        assert torch.equal(model.generate(ids, **options, **help_of), expected)
    else:
        with pytest.raises(ValueError, match=rf"assisted generation .* method '{name}' .*causal"):
            model.generate(ids, **options, **help_of)


@pytest.mark.parametrize("length", [20, 45])
def test_attention_that_is_not_causal(make_model: MakeModel, length: int) -> None:
    model = put(make_model(WINDOW))
    with pytest.raises(ValueError, match=r"is_causal = False"):
        model(tokens(1, length), is_causal=False)
    model.config.is_causal = False
    with pytest.raises(ValueError, match=r"is_causal = False"):
        model(tokens(1, length))


@pytest.mark.parametrize("length", [20, 45])
def test_another_attention_set_on_a_model_with_a_method(make_model: MakeModel, length: int) -> None:
    model = put(make_model(WINDOW))
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=r"attention implementation was set to 'eager' .*uninstall the method first"):
        model(tokens(1, length))
    uninstall(model)
    logits(model, tokens(1, length))


def test_a_method_of_a_module_that_was_replaced_since(make_model: MakeModel) -> None:
    """As accelerate does where it places a model. Nothing is half taken off."""
    model = put(make_model(WINDOW))
    expected = logits(model, BEYOND)
    block: Any = model.model.layers[1].mlp  # type: ignore[union-attr, index]
    ours = block.forward
    block.forward = functools.partial(ours)
    with pytest.raises(ValueError, match=r"forward of a LlamaMLP was replaced after the method was installed"):
        uninstall(model)
    assert installed_method(model) is not None
    assert torch.equal(logits(model, BEYOND), expected)
    block.forward = ours
    assert installed_method(uninstall(model)) is None


def test_the_base_model_and_the_model_with_its_head(make_model: MakeModel) -> None:
    """One method at a time, wherever it was put."""
    model: Any = make_model(WINDOW)
    stock = logits(model, BEYOND)
    put(model)
    expected = logits(model, BEYOND)
    assert installed_method(model.model) is installed_method(model)
    with pytest.raises(ValueError, match=r"on the model with its head; uninstall it there"):
        uninstall(model.model)
    assert torch.equal(logits(model, BEYOND), expected)
    uninstall(model)
    put(model.model)
    assert torch.equal(logits(model, BEYOND), expected)
    put(model)
    assert torch.equal(logits(model, BEYOND), expected)
    assert torch.equal(logits(uninstall(model), BEYOND), stock)


def test_a_prompt_in_pieces_is_refused_where_it_changes_the_text(make_model: MakeModel) -> None:
    options = {"max_new_tokens": 6, "do_sample": False}
    model: Any = put(make_model(WINDOW))
    expected = model.generate(BEYOND, **options)
    assert torch.equal(model.generate(BEYOND, prefill_chunk_size=17, **options), expected)
    put(model, "dpi", CHUNKS)
    with pytest.raises(ValueError, match=r"prefill_chunk_size = 17 cuts the prompt, and under method 'dpi'"):
        model.generate(BEYOND, prefill_chunk_size=17, **options)


def test_a_shallow_copy_of_a_cache_that_is_gone(make_model: MakeModel) -> None:
    model = put(make_model(WINDOW))
    cache = model(BEYOND, use_cache=True).past_key_values
    twin = copy.copy(cache)
    del cache
    with pytest.raises(ValueError, match=r"a shallow copy of one that is gone; copy caches with copy\.deepcopy"):
        model(tokens(1, 3), past_key_values=twin)
