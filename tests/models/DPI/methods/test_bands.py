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
    assert torch.equal(count, causal_mask(past, length).long())
    assert_same_terms(found, terms(method, window, past, length))
    for segment in segments:
        assert segment.num_keys == segment.last
        for before, after in zip(segment.bands, segment.bands[1:], strict=False):
            assert (before.stop <= after.start).all()


@settings(max_examples=60, deadline=None)
@given(setups())
def test_distances_stay_within_what_the_method_promises(setup: tuple[Method, int, int, int]) -> None:
    """No pair is further apart than the window, for an input that the method says it reaches."""
    method, window, past, length = setup
    if not method.name.startswith(("dpi", "repro_se", "repro_chunkllama")) or length > method.reach(window):
        return
    found, _, _ = terms_of_bands(method.segments(rope(window), past, length), past, length)
    seen = causal_mask(past, length)
    assert found.upper[seen].min() >= 0
    assert found.lower[seen].max() <= window - (method.name != "repro_se" or method.group_size == 1)


@settings(max_examples=40, deadline=None)
@given(setups())
def test_scales_of_the_models_own_rope_are_kept(setup: tuple[Method, int, int, int]) -> None:
    """A model whose rotary scheme scales cos and sin has the logits scaled by its square, in every band."""
    method, window, past, length = setup
    if method.name in ("repro_ntk", "repro_dynamic_ntk", "repro_yarn"):  # they need a base
        return
    plain = rope(window)
    scaled = type(plain)(inv_freq=plain.inv_freq, window=window, theta=None, scaling=1.25)
    before, _, _ = terms_of_bands(method.segments(plain, past, length), past, length)
    after, _, _ = terms_of_bands(method.segments(scaled, past, length), past, length)
    assert after.scale == pytest.approx(before.scale * 1.25**2, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(setups())
def test_plain_means_the_models_own_band(setup: tuple[Method, int, int, int]) -> None:
    method, window, past, length = setup
    if method.name == "repro_original" or not method.is_plain(rope(window), length):
        return
    assert length <= window
    found, _, noisy = terms_of_bands(method.segments(rope(window), past, length), past, length)
    i, j = torch.arange(past, length)[:, None], torch.arange(length)[None]
    assert torch.equal(found.upper, ((i - j) * causal_mask(past, length)).double())
    assert found.scale == 1.0
    assert not noisy.any()
