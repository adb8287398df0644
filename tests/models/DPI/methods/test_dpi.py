"""GALI: which logits get noise and how much, chunk-free as generation would see it, segments of one divisor."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.DPI.methods import build_method
from tests.models.DPI.oracle import (
    assert_same_terms,
    causal_mask,
    chunk_ends,
    dpi_params,
    rope,
    terms,
    terms_of_bands,
)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(4, 30).flatmap(lambda w: st.tuples(st.just(w), dpi_params(w))),
    st.integers(1, 90),
    st.sampled_from(["gaussian", "uniform"]),
    st.integers(0, 1),
    st.integers(0, 1),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_noise_goes_to_interpolated_logits(
    window_and_params: tuple[int, dict[str, Any]], length: int, kind: str, relcoef: int, scale_std: int, base: float
) -> None:
    window, params = window_and_params
    noise_params = {"noise_type": kind, "addon_relcoef": relcoef, "scale_std": scale_std, "std_base": base}
    method = build_method("dpi", params | noise_params, window)
    segments = method.segments(rope(window), 0, length)
    _, _, noisy = terms_of_bands(segments, 0, length)
    expected = terms(method, window, 0, length).interpolated if relcoef else causal_mask(0, length)
    ends = torch.tensor(chunk_ends(length, window, params["chunk_coe"]))
    expected = expected & (ends > window)[:, None] & torch.tensor(params["appro_attn"])
    assert torch.equal(noisy, expected)
    assert (method.noise(3) is not None) == params["appro_attn"]
    for segment in segments:
        if segment.noise_std is None:
            continue
        per_query = base / ends[segment.first : segment.last].float() if scale_std else torch.tensor(1.0)
        torch.testing.assert_close(segment.noise_std, per_query.expand(segment.last - segment.first), rtol=1e-6, atol=0)


def test_no_noise_where_none_is_asked_for() -> None:
    method = build_method("dpi", {"local_window": 3, "chunk_coe": 5}, 16)
    assert method.noise(0) is None
    segments = method.segments(rope(16), 0, 50)
    assert all(segment.noise_std is None for segment in segments)


def test_noise_takes_its_flags_from_the_parameters() -> None:
    params = {"noise_type": "uniform", "scale_mean": 1, "scale_max": 0, "scale_std": 0}
    noise = build_method("dpi", params).noise(seed=77)
    assert noise is not None
    assert (noise.kind, noise.seed) == ("uniform", 77)
    assert (noise.scale_mean, noise.scale_max, noise.scale_std) == (True, False, False)


def test_defaults_are_the_papers() -> None:
    assert build_method("dpi", None).model_dump() == {
        "chunk_coe": 3000,
        "local_window": 128,
        "appro_attn": True,
        "use_chunk_softmax": False,
        "noise_type": "no",
        "addon_relcoef": 1,
        "std_base": 1.0,
        "scale_mean": 0,
        "scale_std": 1,
        "scale_max": 1,
        "temperature": "none",
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 30).flatmap(lambda w: st.tuples(st.just(w), st.integers(1, w - 1))), st.integers(1, 90))
def test_chunk_free_prefill_has_the_bands_of_token_by_token(window_and_local: tuple[int, int], length: int) -> None:
    window, local_window = window_and_local
    method = build_method("dpi", {"chunk_coe": 1, "local_window": local_window}, window)
    whole, _, _ = terms_of_bands(method.segments(rope(window), 0, length), 0, length)
    for n in range(window + 1, length + 1):
        one, _, _ = terms_of_bands(method.segments(rope(window), n - 1, n), n - 1, n)
        assert torch.equal(whole.upper[n - 1, :n], one.upper[0])
        assert torch.equal(whole.weight[n - 1, :n], one.weight[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 30).flatmap(lambda w: st.tuples(st.just(w), dpi_params(w))), st.integers(2, 90))
def test_one_segment_for_each_divisor(window_and_params: tuple[int, dict[str, Any]], length: int) -> None:
    """Few segments, or a fused kernel would be launched for each chunk."""
    window, params = window_and_params
    method = build_method("dpi", params, window)
    segments = method.segments(rope(window), 0, length)
    divisors = [segment.bands[0].keys.stretch for segment in segments]
    assert divisors == sorted(set(divisors))


def test_use_chunk_softmax_changes_nothing() -> None:
    a, b = (build_method("dpi", {"use_chunk_softmax": flag, "local_window": 3}, 16) for flag in (False, True))
    found = [terms_of_bands(method.segments(rope(16), 0, 45), 0, 45)[0] for method in (a, b)]
    assert_same_terms(found[0], found[1])


def test_the_local_window_must_leave_a_head() -> None:
    with pytest.raises(ValueError, match="local_window = 16 must be smaller than the model's window of 16"):
        build_method("dpi", {"local_window": 16}, 16)
    assert build_method("dpi", {"local_window": 15}, 16)
