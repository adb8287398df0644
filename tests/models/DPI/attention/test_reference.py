"""The reference against complex rotations over every pair, in fp64."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.DPI.attention import reference
from models.DPI.attention.noise import draw
from models.DPI.attention.tables import rotate
from models.DPI.help_funcs import attention_score_approximate, construct_new_pi, get_chunk_size_list
from models.DPI.methods import METHODS, build_method
from tests.models.DPI import oracle

SLOW_TO_DRAW = [HealthCheck.differing_executors, HealthCheck.too_slow]


def tensors(
    seed: int, past: int, length: int, *, batch: int = 2, heads: int = 4, kv: int = 2, d: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """fp64 queries, keys and values."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (heads, length - past, d), (kv, length, d), (kv, length, d)
    q, k, v = (torch.randn(batch, *shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("name", sorted(METHODS))
@settings(max_examples=12, deadline=None, suppress_health_check=SLOW_TO_DRAW)
@given(data=st.data(), heads=st.sampled_from([(1, 1), (4, 2), (3, 3), (6, 1)]), rest=st.sampled_from([0, 4]))
def test_every_method_is_its_two_logit_form(name: str, data: st.DataObject, heads: tuple[int, int], rest: int) -> None:
    method, window, past, length = data.draw(oracle.setups(name, max_length=60))
    q, k, v = tensors(length, past, length, heads=heads[0], kv=heads[1], d=8 + rest)
    segments = method.segments(oracle.rope(window), past, length)
    found, p = reference.attend(q, k, v, segments, scaling=0.6, need_weights=True)
    terms = oracle.terms(method, window, past, length)
    expected = oracle.attention(q, k, v, oracle.inv_freq_of(segments), terms, 0.6)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)  # the tables are fp32
    assert p is not None
    assert p.shape == (2, heads[0], length - past, length)
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]))
    assert not p[..., ~oracle.causal_mask(past, length)].any()


@pytest.mark.parametrize(("chunk_coe", "local_window"), [(1, 5), (9, 5), (0.4, 3), (40, 2)])
def test_logits_are_those_of_the_papers_functions(chunk_coe: int | float, local_window: int) -> None:
    """Chunk by chunk: positions of all tokens so far, two scores at integer distances, the score between them."""
    window, length, scaling = 16, 61, 0.4
    method = build_method("dpi", {"chunk_coe": chunk_coe, "local_window": local_window}, window)
    rope = oracle.rope(window)
    q, k, _ = tensors(6, 0, length, heads=2)
    logits = torch.full((2, 2, length, length), float("nan"), dtype=torch.float64)
    for segment in method.segments(rope, 0, length):
        part, covered = reference.logits_of(q[:, :, segment.first : segment.last], k, segment, scaling=scaling)
        logits[:, :, segment.first : segment.last, : part.shape[-1]] = part.masked_fill(~covered, float("nan"))

    def rotated(x: Tensor, positions: Tensor) -> Tensor:
        return rotate(x, *rope.frequencies.tables(positions, x.device))

    past = 0
    for size in get_chunk_size_list(length, window, chunk_coe):
        end = past + size
        p = construct_new_pi(end, window, local_window).double()
        queries = rotated(q[:, :, past:end], p[past:].ceil())
        at_ceil, at_floor = (queries @ rotated(k[:, :, :end], at).mT * scaling for at in (p.ceil(), p.floor()))
        expected = attention_score_approximate(at_ceil, at_floor, p)
        seen = oracle.causal_mask(past, end)
        found = logits[:, :, past:end, :end]
        torch.testing.assert_close(found[..., seen], expected[..., seen], rtol=0, atol=1e-5)
        assert found[..., ~seen].isnan().all()
        past = end


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
@pytest.mark.parametrize("flags", [{}, {"addon_relcoef": 0}, {"scale_mean": 1, "scale_max": 0}, {"scale_std": 0}])
@pytest.mark.parametrize("past", [0, 21, 52])
def test_noise_is_that_of_the_definition(kind: str, flags: dict[str, Any], past: int) -> None:
    window, length, layer, seed, std_base = 16, 53, 3, 12, 0.7
    params = {"chunk_coe": 7, "local_window": 5, "noise_type": kind, "std_base": std_base} | flags
    method: Any = build_method("dpi", params, window)
    q, k, v = tensors(1, past, length)
    segments = method.segments(oracle.rope(window), past, length)
    found, _ = reference.attend(q, k, v, segments, scaling=0.4, noise=method.noise(seed), layer=layer)

    terms = oracle.terms(method, window, past, length)
    logits = oracle.logits(q, k, oracle.inv_freq_of(segments), terms, 0.4)
    value = draw(method.noise(seed), layer, 4, torch.arange(past, length), torch.arange(length)).double()
    expected = oracle.attend(oracle.with_noise(logits, method, terms, value, window, past, length), v)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


def test_noise_of_zero_deviation_is_no_noise() -> None:
    params = {"chunk_coe": 7, "local_window": 5}
    plain = build_method("dpi", params, 16)
    silent = build_method("dpi", params | {"noise_type": "uniform", "std_base": 0.0, "scale_std": 1}, 16)
    q, k, v = tensors(2, 0, 45)
    outs = [
        reference.attend(q, k, v, m.segments(oracle.rope(16), 0, 45), scaling=0.4, noise=m.noise(0))[0]
        for m in (plain, silent)
    ]
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=1e-12)


def test_query_heads_share_their_key_head() -> None:
    """Head h attends with key head h // (H / Hkv)."""
    torch.manual_seed(3)
    x, y = torch.randn(2, 6, 5, 7), torch.randn(2, 3, 7, 4)
    expected = torch.stack([x[:, h] @ y[:, h // 2] for h in range(6)], dim=1)
    torch.testing.assert_close(reference.grouped_matmul(x, y), expected)


def test_half_precision_stays_near_the_exact_result() -> None:
    method = build_method("dpi", {"chunk_coe": 9, "local_window": 5}, 16)
    q, k, v = (x.bfloat16() for x in tensors(4, 0, 61))
    segments = method.segments(oracle.rope(16), 0, 61)
    found, _ = reference.attend(q, k, v, segments, scaling=0.35)
    exact, _ = reference.attend(q.double(), k.double(), v.double(), segments, scaling=0.35)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - exact).abs().max()) < 0.03
