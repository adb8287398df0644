"""Frequencies of the methods that change them, against transformers and against the formula in fp64."""

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from models.DPI.methods import build_method
from tests.models.DPI.oracle import inv_freq_of, rope


def _transformers(rope_type: str, window: int, head_dim: int, theta: float, factor: float, length: int | None = None):
    parameters = {
        "rope_type": rope_type,
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": window,
    }
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=window,
        rope_parameters=parameters,
    )
    return ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), seq_len=length)


SHAPES = [(512, 64, 10_000.0), (8192, 128, 500_000.0), (8192, 64, 100_000.0), (33, 16, 10_000.0), (4096, 12, 1e6)]


def _found(name: str, factor: float, window: int, head_dim: int, theta: float, length: int) -> tuple[Tensor, float]:
    segments = build_method(name, {"factor": factor}).segments(rope(window, head_dim, theta), 0, length)
    (segment,) = segments
    (band,) = segment.bands
    return band.frequencies.inv_freq, float(band.query_scale)


@pytest.mark.parametrize(("window", "head_dim", "theta"), SHAPES)
@pytest.mark.parametrize("factor", [1.0, 2.0, 3.7, 16.0])
def test_yarn_is_that_of_transformers(window: int, head_dim: int, theta: float, factor: float) -> None:
    expected, scaling = _transformers("yarn", window, head_dim, theta, factor)
    found, scale = _found("repro_yarn", factor, window, head_dim, theta, 3)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)
    assert scale == pytest.approx(scaling**2, rel=1e-9)


@pytest.mark.parametrize(("window", "head_dim", "theta"), SHAPES)
@pytest.mark.parametrize("factor", [1.0, 2.0, 3.7])
@pytest.mark.parametrize("times", [0.5, 1.01, 1.9, 4.0])
def test_dynamic_ntk_is_that_of_transformers(
    window: int, head_dim: int, theta: float, factor: float, times: float
) -> None:
    length = int(window * times)
    expected, _ = _transformers("dynamic", window, head_dim, theta, factor, max(length, window))
    found, scale = _found("repro_dynamic_ntk", factor, window, head_dim, theta, length)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)
    assert scale == 1.0


@pytest.mark.parametrize(("window", "head_dim", "theta"), SHAPES)
@pytest.mark.parametrize("factor", [1.0, 2.0, 3.7])
@pytest.mark.parametrize("length", [1, 10_000])
def test_ntk_has_one_other_base_at_every_length(
    window: int, head_dim: int, theta: float, factor: float, length: int
) -> None:
    base = theta * factor ** (head_dim / (head_dim - 2))
    expected = torch.tensor([base ** (-2 * f / head_dim) for f in range(head_dim // 2)])
    found, scale = _found("repro_ntk", factor, window, head_dim, theta, length)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)
    assert scale == 1.0


@pytest.mark.parametrize("mscale", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("length", [3, 64, 65, 200])
def test_chunkllama_scales_with_the_logarithm_of_the_length(mscale: float, length: int) -> None:
    method = build_method("repro_chunkllama", {"mscale": mscale}, 64)
    (segment,) = method.segments(rope(64), length - 1, length)
    m = mscale * math.log(length / 64) + 1 if length > 64 else 1.0
    assert len(segment.bands) == 3
    for band in segment.bands:
        assert band.query_scale == pytest.approx(m * m, rel=1e-12)


@pytest.mark.parametrize("name", ["dpi", "repro_se", "repro_chunkllama", "repro_original"])
def test_other_methods_keep_the_models_frequencies(name: str) -> None:
    own = rope(16, 12, 777.0)
    params = {"repro_se": {"group_size": 3, "window_size": 5}, "dpi": {"local_window": 3}}.get(name)
    for length in (9, 40):
        segments = build_method(name, params, 16).segments(own, 0, length)
        assert torch.equal(inv_freq_of(segments), own.inv_freq)


@pytest.mark.parametrize("name", ["repro_yarn", "mrrope", "tailspline"])
def test_in_a_window_without_a_full_turn_all_frequencies_but_the_first_are_slowed(name: str) -> None:
    """With W = 4 the fastest frequency turns 4 / 2 pi times: the ramp has no width."""
    own = rope(4, 12, 1e4)
    found = inv_freq_of(build_method(name, {"factor": 4.0}).segments(own, 0, 16))
    wanted = own.inv_freq / torch.tensor([1.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0.0)


def test_two_ropes_do_not_share_frequencies() -> None:
    method = build_method("repro_ntk", {"factor": 4.0})
    first, second = (inv_freq_of(method.segments(rope(16, 12, theta), 0, 5)) for theta in (1e4, 1e5))
    assert not torch.equal(first, second)
