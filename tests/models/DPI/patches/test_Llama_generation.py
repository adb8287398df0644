"""Prefill, pieces, decoding, padding, beams and caches: one function of the tokens, however they are fed."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from models.DPI.methods import METHODS, build_method
from tests.models.DPI.helpers import (
    CHUNK_FREE,
    CHUNKS,
    MODEL_TYPES,
    NOISY,
    PARAMS,
    ROUNDING,
    WINDOW,
    MakeModel,
    in_pieces,
    logits,
    padded,
    put,
    tokens,
)


def greedy(model: Any, ids: Tensor, new: int, mask: Tensor | None = None, **options: Any) -> Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    options = {"do_sample": False, "max_new_tokens": new} | options
    return model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("params", [CHUNK_FREE, NOISY], ids=["plain", "noisy"])
def test_chunk_free_prefill_is_token_by_token(make_model: MakeModel, model_type: str, params: dict[str, Any]) -> None:
    model = put(make_model(WINDOW, model_type), params=params, seed=5)
    ids = tokens(2, 77)
    whole = logits(model, ids)
    torch.testing.assert_close(in_pieces(model, ids, list(range(78))), whole, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
@pytest.mark.parametrize("name", [name for name in METHODS if build_method(name, PARAMS[name]).is_causal()])
def test_pieces_are_one_shot_where_positions_are_the_same(make_model: MakeModel, name: str, impl: str) -> None:
    model = put(make_model(WINDOW), name, attn_impl=impl)
    ids = tokens(2, 77)
    whole = logits(model, ids)
    for edges in ([0, 77], [0, 32, 77], [0, 20, 50, 51, 52, 77], [0, 33, 34, 76, 77]):
        torch.testing.assert_close(in_pieces(model, ids, edges), whole, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("dpi", CHUNKS),
        ("repro_dynamic_ntk", {"factor": 4.0}),
        ("repro_chunkllama", {}),
        ("lampe", PARAMS["lampe"]),
        ("string", {"shift": 0.4, "local_window": 3}),
    ],
)
def test_what_is_not_causal_depends_on_the_pieces(make_model: MakeModel, name: str, params: dict[str, Any]) -> None:
    model = put(make_model(WINDOW), name, params)
    assert not build_method(name, params).is_causal()
    ids = tokens(2, 77)
    assert float((in_pieces(model, ids, [0, 50, 77]) - logits(model, ids)).abs().max()) > 0.01


def test_pieces_at_the_borders_of_chunks_are_one_shot(make_model: MakeModel) -> None:
    """With chunk_coe = 11: pieces that end where chunks do have the same positions, others do not."""
    model = put(make_model(WINDOW), params={"local_window": 7, "chunk_coe": 11})
    ids = tokens(2, 77)
    whole = logits(model, ids)
    same = in_pieces(model, ids, [0, 15, 32, 43, 65, 77])
    torch.testing.assert_close(same, whole, rtol=0, atol=ROUNDING)
    other = in_pieces(model, ids, [0, 40, 77])
    assert float((other - whole).abs().max()) > 0.01


def test_the_last_logits_of_one_shot_are_those_of_the_last_chunk(make_model: MakeModel) -> None:
    """A prompt fed chunk after chunk, as the authors do, and in one pass."""
    model = put(make_model(WINDOW), params={"local_window": 7, "chunk_coe": 0.5})
    ids = tokens(1, 101)
    torch.testing.assert_close(in_pieces(model, ids, [0, 32, 48, 72, 101]), logits(model, ids), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("params", [CHUNK_FREE, NOISY], ids=["plain", "noisy"])
@pytest.mark.parametrize("length", [20, 31, 32, 33, 50])
def test_greedy_is_a_loop_of_full_passes(
    make_model: MakeModel, model_type: str, params: dict[str, Any], length: int
) -> None:
    """Generation that starts within the window and crosses it."""
    model = put(make_model(WINDOW, model_type), params=params)
    ids = prompt = tokens(1, length)
    for _ in range(15):
        ids = torch.cat((ids, logits(model, ids)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(greedy(model, prompt, 15), ids[:, length:])
    assert torch.equal(greedy(model, prompt, 15, use_cache=False), ids[:, length:])


@pytest.mark.parametrize("name", ["repro_dynamic_ntk", "repro_chunkllama", "lampe"])
def test_methods_that_depend_on_the_length_see_the_present_one(make_model: MakeModel, name: str) -> None:
    """Keys are cached un-rotated: one layer's decoding is a full pass, with nothing kept from shorter lengths."""
    model = put(make_model(WINDOW, num_hidden_layers=1), name)
    ids = tokens(1, 60)
    last = in_pieces(model, ids, [0, 40, *range(41, 61)])[:, -1]
    torch.testing.assert_close(last, logits(model, ids)[:, -1], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_padded_batches_are_the_rows_alone(make_model: MakeModel, name: str, side: str, impl: str) -> None:
    """Rows beyond the window and within it together."""
    params = PARAMS[name] | ({"noise_type": "gaussian"} if name == "dpi" else {})
    model = put(make_model(WINDOW), name, params, attn_impl=impl)
    lengths = [61, 20, 43, 33, 1]
    ids, mask = padded(lengths, side)
    found = logits(model, ids, attention_mask=mask)
    for row in range(len(lengths)):
        real = mask[row].bool()
        alone = logits(model, ids[row : row + 1, real])
        torch.testing.assert_close(found[row, real], alone[0], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("lengths", [[61, 20, 43], [20, 27, 11]], ids=["beyond", "crossing"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_padded_generation_is_each_row_alone(
    make_model: MakeModel, name: str, lengths: list[int], cache: str | None
) -> None:
    model = put(make_model(WINDOW), name)
    ids, mask = padded(lengths)
    options = {"cache_implementation": cache} if cache else {}
    found = greedy(model, ids, 12, mask, **options)
    for row, length in enumerate(lengths):
        assert torch.equal(found[row : row + 1], greedy(model, ids[row : row + 1, -length:], 12))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_static_cache_changes_nothing(make_model: MakeModel, model_type: str) -> None:
    model = put(make_model(WINDOW, model_type), params=NOISY)
    for length in (20, 50):
        ids = tokens(2, length)
        expected = greedy(model, ids, 20)
        assert torch.equal(greedy(model, ids, 20, cache_implementation="static"), expected)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("lengths", [[50], [20], [50, 24]])
def test_beams_with_and_without_cache(make_model: MakeModel, model_type: str, lengths: list[int]) -> None:
    model = put(make_model(WINDOW, model_type))
    ids, mask = padded(lengths)
    options = {"num_beams": 3, "num_return_sequences": 3, "return_dict_in_generate": True, "output_scores": True}
    found, expected = (
        model.generate(ids, attention_mask=mask, max_new_tokens=14, do_sample=False, use_cache=flag, **options)
        for flag in (True, False)
    )
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, rtol=0, atol=ROUNDING)
    assert len({tuple(row) for row in found.sequences.tolist()}) == 3 * len(lengths)


def test_sampling_repeats_with_its_seed(make_model: MakeModel) -> None:
    model = put(make_model(WINDOW), params=NOISY)
    ids, mask = padded([50, 24])

    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return greedy(model, ids, 12, mask, do_sample=True, temperature=2.0)

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def test_prompt_lookup_crops_the_cache_and_changes_nothing(make_model: MakeModel) -> None:
    model = put(make_model(WINDOW))
    ids = tokens(1, 11).repeat(1, 4)[:, :40]
    assert torch.equal(greedy(model, ids, 12, prompt_lookup_num_tokens=4), greedy(model, ids, 12))


def test_prefill_by_generate_in_pieces(make_model: MakeModel) -> None:
    model = put(make_model(WINDOW))
    ids = tokens(1, 60)
    assert torch.equal(greedy(model, ids, 6, prefill_chunk_size=17), greedy(model, ids, 6))


@pytest.mark.parametrize("lengths", [(70, 45), (70, 20), (25, 20)])
def test_a_cropped_cache_goes_on_as_if_never_longer(make_model: MakeModel, lengths: tuple[int, int]) -> None:
    model = put(make_model(WINDOW))
    ids, more = tokens(1, lengths[0]), tokens(1, 9, seed=1)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        cache.crop(lengths[1] - lengths[0])
        found = model(more, past_key_values=cache).logits
    expected = logits(model, torch.cat((ids[:, : lengths[1]], more), dim=1))[:, lengths[1] :]
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


def test_reordering_the_cache_reorders_the_rows(make_model: MakeModel) -> None:
    model = put(make_model(WINDOW), params=NOISY)
    ids, more, order = tokens(3, 45), tokens(3, 4, seed=1), torch.tensor([2, 0, 0])
    out = []
    for reorder in (False, True):
        with torch.no_grad():
            cache = model(ids, use_cache=True).past_key_values
            if reorder:
                cache.reorder_cache(order)
            out.append(model(more[order] if reorder else more, past_key_values=cache).logits)
    expected = logits(model, torch.cat((ids[order], more[order]), dim=1))[:, 45:]
    torch.testing.assert_close(out[1], expected, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(out[1][1], out[0][0], rtol=0, atol=ROUNDING)


def test_the_cache_holds_keys_that_are_not_rotated(make_model: MakeModel) -> None:
    """The same tokens at other positions have the same first-layer keys."""
    model = put(make_model(WINDOW))
    ids = tokens(1, 20)
    with torch.no_grad():
        keys = [model(x, past_key_values=DynamicCache()).past_key_values.layers[0].keys for x in (ids, ids.flip(1))]
    torch.testing.assert_close(keys[0], keys[1].flip(2))


@pytest.mark.parametrize("length", [20, 50])
def test_embeddings_instead_of_tokens(make_model: MakeModel, length: int) -> None:
    model = put(make_model(WINDOW))
    ids, mask = padded([length, 15])
    embeddings = model.get_input_embeddings()(ids).detach()
    found = logits(model, ids, attention_mask=mask)
    with torch.no_grad():
        by_embeddings = model(inputs_embeds=embeddings, attention_mask=mask).logits
    assert torch.equal(by_embeddings[mask.bool()], found[mask.bool()])
    new = model.generate(inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=14, do_sample=False)
    assert torch.equal(new, greedy(model, ids, 14, mask))


@pytest.mark.parametrize("length", [20, 50])
def test_positions_given_explicitly_change_nothing(make_model: MakeModel, length: int) -> None:
    model = put(make_model(WINDOW))
    ids, mask = padded([length, 15])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = logits(model, ids, attention_mask=mask, position_ids=positions)
    real = mask.bool()
    torch.testing.assert_close(found[real], logits(model, ids, attention_mask=mask)[real], rtol=0, atol=ROUNDING)


def test_noise_is_of_its_seed(make_model: MakeModel) -> None:
    ids = tokens(1, 60)
    first, again, other = (logits(put(make_model(WINDOW), params=NOISY, seed=s), ids) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first[:, :WINDOW], other[:, :WINDOW])
    assert float((first - other)[:, WINDOW + 2 :].abs().max()) > 0.01


def test_only_the_last_logits_can_be_asked_for(make_model: MakeModel) -> None:
    model = put(make_model(WINDOW))
    ids = tokens(1, 60)
    torch.testing.assert_close(logits(model, ids, logits_to_keep=1), logits(model, ids)[:, -1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_stay_near_fp32(make_model: MakeModel, dtype: torch.dtype) -> None:
    ids = tokens(1, 60)
    expected = logits(put(make_model(WINDOW, initializer_range=0.1)), ids)
    model = make_model(WINDOW, initializer_range=0.1).to(dtype)
    found = logits(put(model), ids)
    assert found.dtype == dtype
    allowed = {torch.bfloat16: 0.15, torch.float16: 0.02, torch.float64: 1e-4}[dtype]
    assert float((found.double() - expected.double()).abs().max()) < allowed


def test_gradients_are_not_needed(make_model: MakeModel) -> None:
    with torch.inference_mode():
        assert put(make_model(WINDOW))(tokens(1, 60)).logits.isfinite().all()
