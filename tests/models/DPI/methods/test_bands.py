"""The bands of every method, pair by pair, against the table of the methods."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.DPI.methods import METHODS, Method
from tests.models.DPI.oracle import assert_same_terms, causal_mask, rope, setups, terms, terms_of_bands


@pytest.mark.parametrize("name", sorted(METHODS))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(data=st.data())
def test_every_pair_is_covered_once_at_the_methods_distance(name: str, data: st.DataObject) -> None:
    method, window, past, length = data.draw(setups(name))
    segments = method.segments(rope(window), past, length)
    edges = [past, *(segment.last for segment in segments)]
    assert [segment.first for segment in segments] == edges[:-1]
    assert edges[-1] == length
    found, count, _ = terms_of_bands(segments, past, length)
    expected = terms(method, window, past, length)
    seen = causal_mask(past, length) if expected.seen is None else expected.seen
    assert torch.equal(count, seen.long())
    assert_same_terms(found, expected)
    for segment in segments:
        assert segment.num_keys == segment.last
        for before, after in zip(segment.bands, segment.bands[1:], strict=False):
            assert (before.stop <= after.start).all()


@settings(max_examples=60, deadline=None)
@given(setups())
def test_distances_stay_within_what_the_method_promises(setup: tuple[Method, int, int, int]) -> None:
    """No pair is further apart than the window, for an input that the method says it reaches."""
    method, window, past, length = setup
    if method.rope_types is not None or length > method.reach(window):
        return
    found, _, _ = terms_of_bands(method.segments(rope(window), past, length), past, length)
    assert found.seen is not None
    if method.name == "dpe":  # promised for the group with the largest scale
        found.upper = found.lower = found.upper.amin(-1)
    assert found.upper[found.seen].min() >= 0
    # Floors may add one, and distances that are no whole numbers may be above W - 1.
    whole = method.name in ("dpi", "repro_chunkllama", "rerope", "string", "streaming_llm", "lampe")
    assert found.lower[found.seen].max() <= window - (whole or getattr(method, "group_size", 2) == 1)


@settings(max_examples=40, deadline=None)
@given(setups())
def test_scales_of_the_models_own_rope_are_kept(setup: tuple[Method, int, int, int]) -> None:
    """A model whose rotary scheme scales cos and sin has the logits scaled by its square, in every band."""
    method, window, past, length = setup
    plain = rope(window)
    scaled = type(plain)(inv_freq=plain.inv_freq, window=window, theta=plain.theta, scaling=1.25)
    before, _, _ = terms_of_bands(method.segments(plain, past, length), past, length)
    after, _, _ = terms_of_bands(method.segments(scaled, past, length), past, length)
    torch.testing.assert_close(after.scale, torch.as_tensor(before.scale) * 1.25**2, rtol=1e-12, atol=0)
    torch.testing.assert_close(after.whole, before.whole, rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(setups())
def test_plain_means_the_models_own_band(setup: tuple[Method, int, int, int]) -> None:
    method, window, past, length = setup
    if method.name == "repro_original" or not method.is_plain(rope(window), length):
        return
    assert length <= window
    found, _, noisy = terms_of_bands(method.segments(rope(window), past, length), past, length)
    i, j = torch.arange(past, length)[:, None], torch.arange(length)[None]
    assert torch.equal(found.upper, ((i - j) * causal_mask(past, length)).double()[..., None].expand_as(found.upper))
    assert torch.as_tensor(found.scale).eq(1).all()
    assert torch.as_tensor(found.whole).eq(1).all()
    assert not noisy.any()
