"""Attention in O(N) memory against the fp64 reference: blocks of every size, borders, empty bands, noise."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.DPI.attention import reference, sdpa
from models.DPI.attention.bands import Band, Segment
from models.DPI.attention.tables import KeyPositions
from models.DPI.methods import METHODS, build_method
from tests.models.DPI import oracle
from tests.models.DPI.helpers import CHUNKS, PARAMS

SLOW_TO_DRAW = [HealthCheck.differing_executors, HealthCheck.too_slow, HealthCheck.data_too_large]
# Where both errors are rounding of a few results: some units in the last place of outputs of size up to four.
FLOOR = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1.6e-2}


def tensors(seed: int, past: int, length: int, heads: int = 4, kv: int = 2, d: int = 16) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (heads, length - past, d), (kv, length, d), (kv, length, d)
    return tuple(torch.randn(2, *shape, generator=generator) for shape in shapes)


def assert_no_worse_than_twice_plain(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """The rule of flash-attention's tests: at most twice the error of plain PyTorch in the same dtype."""
    assert found.dtype == plain.dtype
    assert found.isfinite().all()
    error, allowed = ((x.double() - exact).abs().max() for x in (found, plain))
    assert float(error) <= 2 * float(allowed) + FLOOR[found.dtype]


def check(segments: list[Segment], tensors_: tuple[Tensor, ...], dtype: torch.dtype, **options: Any) -> None:
    q, k, v = (x.to(dtype) for x in tensors_)
    exact, _ = reference.attend(q.double(), k.double(), v.double(), segments, **options)
    plain, _ = reference.attend(q, k, v, segments, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda x: torch.full_like(x, float("nan")))
        found = sdpa.attend(q, k, v, segments, **options)
    assert_no_worse_than_twice_plain(found, plain, exact)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@settings(max_examples=15, deadline=None, suppress_health_check=SLOW_TO_DRAW)
@given(
    data=st.data(),
    block=st.sampled_from([1, 2, 5, 16, 37, 512]),
    heads=st.sampled_from([(4, 2), (3, 3), (9, 3), (5, 1)]),
)
def test_every_method_in_blocks(
    name: str, dtype: torch.dtype, data: st.DataObject, block: int, heads: tuple[int, int]
) -> None:
    method, window, past, length = data.draw(oracle.setups(name, max_length=130))
    segments = method.segments(oracle.rope(window, 16), past, length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sdpa._BLOCK, "cpu", block)
        check(segments, tensors(length, past, length, *heads), dtype, scaling=0.25)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_fp64_is_exact_to_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sdpa._BLOCK, "cpu", 23)
    params = CHUNKS if name == "dpi" else PARAMS[name]
    method = build_method(name, params, 32)
    for past in (0, 40, 100):
        segments = method.segments(oracle.rope(32, 16), past, 101)
        check(segments, tensors(6, past, 101), torch.float64, scaling=0.25)


@pytest.mark.parametrize("flags", [{}, {"addon_relcoef": 0}, {"scale_mean": 1}, {"scale_max": 0}, {"scale_std": 0}])
@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("past", "chunk_coe"), [(0, 1), (0, 7), (40, 0.3), (82, 1)])
def test_noise_of_all_kinds(
    flags: dict[str, int], kind: str, dtype: torch.dtype, past: int, chunk_coe: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sdpa._BLOCK, "cpu", 11)
    monkeypatch.setattr(sdpa, "_MAX_LOGITS", 5 * 83 * 2 * 4)  # five queries per block
    method = build_method("dpi", {"local_window": 5, "chunk_coe": chunk_coe, "noise_type": kind} | flags, 24)
    segments = method.segments(oracle.rope(24, 16), past, 83)
    check(segments, tensors(7, past, 83), dtype, scaling=0.25, noise=method.noise(4), layer=2)


def test_noise_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build_method("dpi", {"local_window": 5, "chunk_coe": 1, "noise_type": "gaussian"}, 24)
    segments = method.segments(oracle.rope(24, 16), 0, 83)
    q, k, v = tensors(8, 0, 83)
    outs = []
    for block in (1, 13, 512):
        monkeypatch.setitem(sdpa._BLOCK, "cpu", block)
        outs.append(sdpa.attend(q, k, v, segments, scaling=0.25, noise=method.noise(4), layer=2))
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=0, atol=2e-6)
    other_layer = sdpa.attend(q, k, v, segments, scaling=0.25, noise=method.noise(4), layer=3)
    assert float((other_layer - outs[0]).abs().max()) > 0.05


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW_TO_DRAW)
@given(
    data=st.data(),
    block=st.sampled_from([1, 3, 8, 64]),
    num_bands=st.integers(1, 4),
    sizes=st.tuples(st.integers(0, 30), st.integers(1, 40)),
)
def test_bands_of_any_shape(data: st.DataObject, block: int, num_bands: int, sizes: tuple[int, int]) -> None:
    """Random monotone boundaries, with gaps between bands and bands that some queries do not have at all.

    The last band always holds the query's own key, so that every query sees something.
    """
    past, new = sizes
    length = past + new
    i = torch.arange(past, length)
    cuts = [
        torch.tensor(sorted(data.draw(st.lists(st.integers(0, past), min_size=new, max_size=new))))
        for _ in range(2 * num_bands - 1)
    ]
    edges = [*torch.stack(cuts).sort(0).values, i + 1]
    own = oracle.rope(16, 16).frequencies
    bands = tuple(
        Band(own, i.double() / (b + 1), KeyPositions(stretch=b + 1, blend=b % 2 == 1), edges[2 * b], edges[2 * b + 1])
        for b in range(num_bands)
    )
    segments = [Segment(past, length, bands)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sdpa._BLOCK, "cpu", block)
        check(segments, tensors(length, past, length), torch.float32, scaling=0.25)


def test_a_query_scale_for_each_query() -> None:
    i = torch.arange(7, 50)
    scale = torch.linspace(0.5, 1.5, 43, dtype=torch.float64)
    band = Band(oracle.rope(16, 16).frequencies, i.double(), KeyPositions(), i * 0, i + 1, query_scale=scale)
    q, k, v = tensors(9, 7, 50)
    found = sdpa.attend(q, k, v, [Segment(7, 50, (band,))], scaling=0.25)
    one = Band(oracle.rope(16, 16).frequencies, i.double(), KeyPositions(), i * 0, i + 1)
    expected = sdpa.attend(q * scale[:, None].float(), k, v, [Segment(7, 50, (one,))], scaling=0.25)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("seed", range(5))
def test_borders_wider_than_the_kernels_blocks(dtype: torch.dtype, seed: int) -> None:
    """Queries that see keys only behind many masked ones, and queries that see none of a band."""
    generator = torch.Generator().manual_seed(seed)
    past, length = 1100, 1400
    i = torch.arange(past, length)
    cut, end = (torch.randint(0, past, (length - past,), generator=generator).sort()[0] for _ in range(2))
    end[:50] = cut[:50]  # of the second band
    rope = oracle.rope(2000, 16).frequencies
    bands = (
        Band(rope, i.double(), KeyPositions(), i * 0, cut),
        Band(rope, i.double() / 2, KeyPositions(), cut, torch.maximum(cut, end)),
        Band(rope, i.double(), KeyPositions(), torch.maximum(cut, end), i + 1),
    )
    check([Segment(past, length, bands)], tensors(seed, past, length), dtype, scaling=0.25)


def test_large_logits_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sdpa._BLOCK, "cpu", 16)
    method = build_method("dpi", {"local_window": 5, "chunk_coe": 7}, 24)
    segments = method.segments(oracle.rope(24, 16), 0, 83)
    q, k, v = tensors(10, 0, 83)
    found = sdpa.attend(q * 300, k * 10, v, segments, scaling=0.25)
    exact, _ = reference.attend((q * 300).double(), (k * 10).double(), v.double(), segments, scaling=0.25)
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-2)


def test_rows_of_logits_stay_under_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """With noise, blocks shrink as keys and batch grow."""
    formed: list[int] = []
    original = reference.logits_of

    def spy(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        out = original(*args, **kwargs)
        formed.append(out[0].numel())
        return out

    monkeypatch.setattr(reference, "logits_of", spy)
    monkeypatch.setattr(sdpa, "_MAX_LOGITS", 10_000)
    method = build_method("dpi", {"local_window": 5, "chunk_coe": 1, "noise_type": "uniform"}, 24)
    segments = method.segments(oracle.rope(24, 16), 0, 203)
    q, k, v = tensors(11, 0, 203)
    sdpa.attend(q, k, v, segments, scaling=0.25, noise=method.noise(0))
    assert max(formed) <= 10_000
    assert sum(formed) > 100_000
