"""Rotary tables against complex rotations in fp64, and their cache."""

import math
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from models.DPI.attention import tables
from models.DPI.attention.tables import _GROWTH, Frequencies, KeyPositions, rotate
from tests.models.DPI.oracle import rope

CPU = torch.device("cpu")


def _inv_freq(dim: int = 16, theta: float = 10_000.0) -> torch.Tensor:
    return rope(8, dim, theta).inv_freq


class _Exact(Frequencies):
    """Tables left in fp64, to compare the algebra and not the rounding."""

    def tables(
        self, positions: torch.Tensor, device: torch.device, blend: bool = False, scale: float | torch.Tensor = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", lambda tensor: tensor)
            return super().tables(positions, device, blend, scale)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(2, 70), st.integers(0, 1000))
def test_blended_keys_are_the_papers_two_logits(stretch: int, n: int, seed: int) -> None:
    """(1 - w) <q, R(ceil p) k> + w <q, R(floor p) k> = <q, k~>, to rounding in fp64."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(n, 16, dtype=torch.float64, generator=generator) for _ in range(2))
    frequencies = _Exact(_inv_freq())
    positions = KeyPositions(stretch=stretch, blend=True)(torch.arange(n))
    at = torch.randint(0, 2 * n, (n,), generator=generator).double()
    rotated_q = rotate(q, *frequencies.tables(at, CPU))
    blended = rotated_q @ rotate(k, *frequencies.tables(positions, CPU, blend=True)).T
    upper = rotated_q @ rotate(k, *frequencies.tables(positions.ceil(), CPU)).T
    lower = rotated_q @ rotate(k, *frequencies.tables(positions.floor(), CPU)).T
    w = positions.ceil() - positions
    torch.testing.assert_close(blended, (1 - w) * upper + w * lower, rtol=0, atol=1e-12)


def test_blend_at_integers_is_no_blend() -> None:
    frequencies = Frequencies(_inv_freq())
    whole = torch.arange(37).double()
    for one, other in zip(frequencies.tables(whole, CPU, blend=True), frequencies.tables(whole, CPU), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("first", [0, 4095, 131_000, 1_000_003])
def test_tables_are_accurate_at_far_positions(first: int) -> None:
    inv_freq = _inv_freq(64, 500_000.0)
    cos, sin = Frequencies(inv_freq).tables(torch.arange(first, first + 72).double(), CPU)
    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == sin.shape == (72, 32)
    for t in range(0, 72, 7):
        for f in range(32):
            angle = (first + t) * float(inv_freq[f])
            assert abs(float(cos[t, f]) - math.cos(angle)) < 7e-8
            assert abs(float(sin[t, f]) - math.sin(angle)) < 7e-8


@pytest.mark.parametrize("scale", [1.3, torch.linspace(0.5, 2.0, 11)])
def test_scale_multiplies_both_tables(scale: float | torch.Tensor) -> None:
    frequencies = Frequencies(_inv_freq())
    positions = torch.linspace(0, 90, 11, dtype=torch.float64)
    factor = scale[:, None] if isinstance(scale, torch.Tensor) else scale
    for blend in (False, True):
        plain = frequencies.tables(positions, CPU, blend=blend)
        scaled = frequencies.tables(positions, CPU, blend=blend, scale=scale)
        for one, other in zip(plain, scaled, strict=True):
            torch.testing.assert_close(one * factor, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rotate_is_that_of_transformers(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    q, k = torch.randn(2, 3, 19, 16, dtype=dtype), torch.randn(2, 1, 19, 16, dtype=dtype)
    cos, sin = Frequencies(_inv_freq()).tables(torch.arange(5, 24).double(), CPU)
    full = [
        torch.cat((table, table), dim=-1)[None].to(torch.promote_types(dtype, torch.float32)) for table in (cos, sin)
    ]
    wide = torch.promote_types(dtype, torch.float32)
    expected = apply_rotary_pos_emb(q.to(wide), k.to(wide), *full)
    for x, rotated in zip((q, k), expected, strict=True):
        found = rotate(x, cos, sin)
        assert found.dtype == dtype
        torch.testing.assert_close(found, rotated.to(dtype), rtol=0, atol=1e-6 if wide == torch.float32 else 1e-14)


def test_partial_rotary_leaves_the_rest_alone() -> None:
    torch.manual_seed(2)
    x = torch.randn(2, 3, 9, 20)
    cos, sin = Frequencies(_inv_freq(8)).tables(torch.arange(9).double(), CPU)
    rotated = rotate(x, cos, sin)
    assert torch.equal(rotated[..., 8:], x[..., 8:])
    assert torch.equal(rotated[..., :8], rotate(x[..., :8], cos, sin))
    assert not torch.equal(rotated[:, :, 1:, :8], x[:, :, 1:, :8])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (KeyPositions(), [0, 1, 2, 3, 4, 5, 6]),
        (KeyPositions(stretch=2), [0, 0.5, 1, 1.5, 2, 2.5, 3]),
        (KeyPositions(stretch=3, floor=True), [0, 0, 0, 1, 1, 1, 2]),
        (KeyPositions(period=3), [0, 1, 2, 0, 1, 2, 0]),
        (KeyPositions(stretch=2.5, floor=True), [0, 0, 0, 1, 1, 2, 2]),
        (KeyPositions(times=3, stretch=4, floor=True), [0, 0, 1, 2, 3, 3, 4]),
        (KeyPositions(stretch=(2, 3), floor=True), [[0, 0], [0, 0], [1, 0], [1, 1], [2, 1], [2, 1], [3, 2]]),
        (KeyPositions(stretch=(1, 2.5)), [[j, j / 2.5] for j in range(7)]),
    ],
)
def test_key_positions_by_hand(keys: KeyPositions, expected: list[float]) -> None:
    found = keys(torch.arange(7))
    assert found.dtype == torch.float64
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("keys", "cycle"),
    [
        (KeyPositions(), 1),
        (KeyPositions(stretch=2.5), 1),
        (KeyPositions(stretch=6, floor=True), 6),
        (KeyPositions(stretch=6, times=4, floor=True), 3),
        (KeyPositions(stretch=6, blend=True), 6),
        (KeyPositions(stretch=(4, 6, 1), floor=True), 12),
        (KeyPositions(stretch=(4, 2.5), floor=True), 0),
        (KeyPositions(stretch=2.5, floor=True), 0),
        (KeyPositions(period=5), 0),
        (KeyPositions(period=1), 1),
    ],
    ids=str,
)
def test_positions_add_up_from_cycle_to_cycle(keys: KeyPositions, cycle: int) -> None:
    assert keys.cycle == cycle
    if not cycle:
        return
    first, then = cycle * torch.arange(20)[:, None], torch.arange(50)[None]
    whole = keys((first + then).flatten())
    parts = keys(first.flatten())[:, None] + keys(then.flatten())[None]
    torch.testing.assert_close(whole, parts.flatten(0, 1), rtol=0, atol=1e-9)


def test_a_table_by_frequency_has_each_frequencys_own_column() -> None:
    frequencies, stretches = Frequencies(_inv_freq()), (1, 2, 3, 4, 5, 6, 7, 2.5)
    found = frequencies.key_tables(KeyPositions(stretch=stretches, floor=True), 90, CPU)
    for f, stretch in enumerate(stretches):
        expected = frequencies.key_tables(KeyPositions(stretch=stretch, floor=True), 90, CPU)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one[:, f], other[:, f], rtol=0, atol=6e-8)


def test_cached_tables_are_those_computed_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was asked for before: growing, shrinking, other positions, evicted tables."""
    monkeypatch.setattr(tables, "CACHED_KEYS", 8 * _GROWTH)
    frequencies = Frequencies(_inv_freq())
    kinds = [KeyPositions(stretch=s, blend=True) for s in range(2, 16)]
    kinds += [KeyPositions(), KeyPositions(stretch=2), KeyPositions(period=7), KeyPositions(stretch=2, floor=True)]
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        keys = kinds[int(torch.randint(len(kinds), (), generator=generator))]
        length = int(torch.randint(1, 2 * _GROWTH + 9, (), generator=generator))
        found = frequencies.key_tables(keys, length, CPU)
        fresh = frequencies.tables(keys(torch.arange(length)), CPU, blend=keys.blend)
        for one, other in zip(found, fresh, strict=True):
            assert one.shape == (length, 8)
            # libm and its vector form differ in the last place of fp64
            torch.testing.assert_close(one, other, rtol=0, atol=6e-8)
        assert sum(len(cos) for cos, _ in frequencies._tables.values()) <= 8 * _GROWTH


def test_a_table_is_not_rebuilt_for_each_token() -> None:
    frequencies = Frequencies(_inv_freq())
    keys = KeyPositions(stretch=3, blend=True)
    storage = frequencies.key_tables(keys, 5, CPU)[0].data_ptr()
    assert all(frequencies.key_tables(keys, n, CPU)[0].data_ptr() == storage for n in range(6, _GROWTH, 101))


def test_threads_share_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built, used and let go of by four threads that take turns all the time."""
    monkeypatch.setattr(tables, "CACHED_KEYS", 4 * _GROWTH)
    frequencies = Frequencies(_inv_freq())
    fresh = {s: frequencies.tables(torch.arange(5).double() / s, CPU, blend=True)[0] for s in range(2, 14)}
    wrong: list[int] = []

    def work(seed: int) -> None:
        for turn in range(1500):
            stretch = 2 + (7 * turn + seed * turn * turn) % 12
            found = frequencies.key_tables(KeyPositions(stretch=stretch, blend=True), 5, CPU)[0]
            if not torch.allclose(found, fresh[stretch], rtol=0, atol=6e-8):
                wrong.append(stretch)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
