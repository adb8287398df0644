"""GALI's positions against a search for the smallest divisor that fits, and the cutting of prompts into chunks."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.DPI.help_funcs import attention_score_approximate, construct_new_pi, get_chunk_size_list, squeeze
from tests.models.DPI import oracle
from tests.models.DPI.oracle import chunk_ends, gali_positions

windows = st.integers(2, 60).flatmap(lambda w: st.tuples(st.just(w), st.integers(1, w - 1)))


@given(windows, st.integers(1, 600))
def test_positions_are_those_of_the_search(window_and_local: tuple[int, int], n: int) -> None:
    window, local_window = window_and_local
    p = construct_new_pi(n, window, local_window)
    expected = torch.tensor([float(x) for x in gali_positions(n, window, local_window)])
    assert p.dtype == torch.float32
    assert torch.equal(p, expected)


@given(windows, st.integers(1, 600))
def test_positions_are_sorted_within_the_window_and_without_gaps(window_and_local: tuple[int, int], n: int) -> None:
    window, local_window = window_and_local
    p = construct_new_pi(n, window, local_window).double()
    steps = p.diff()
    assert len(p) == n
    assert p[0] == 0
    assert p[-1] == min(n, window) - 1
    assert (steps > 0).all()
    assert (steps <= 1 + 1e-6).all()
    tail = p[-min(local_window, n) :]
    assert torch.equal(tail, tail.round())
    assert (tail.diff() == 1).all()


@given(windows, st.integers(1, 60))
def test_positions_within_the_window_are_the_index(window_and_local: tuple[int, int], n: int) -> None:
    window, local_window = window_and_local
    n = min(n, window)
    assert torch.equal(construct_new_pi(n, window, local_window), torch.arange(n).float())


@given(windows, st.lists(st.integers(1, 600), min_size=1, max_size=20))
def test_squeeze_finds_the_smallest_divisor_and_the_longest_tail(
    window_and_local: tuple[int, int], lengths: list[int]
) -> None:
    window, local_window = window_and_local
    s, head = squeeze(torch.tensor(lengths), window, local_window)
    for n, divisor, head_tokens in zip(lengths, s.tolist(), head.tolist(), strict=True):
        if n <= window:
            assert (divisor, head_tokens) == (1, 0)
            continue
        expected_s, k = oracle.squeeze(n, window, local_window)
        assert (divisor, head_tokens) == (expected_s, n - (window - k))


@pytest.mark.parametrize(
    ("n", "window", "local_window", "s", "k"),
    [(16384, 8192, 128, 3, 4096), (32768, 8192, 128, 5, 6144), (8193, 8192, 128, 2, 1), (16384, 8192, 2048, 3, 4096)],
)
def test_squeeze_at_the_sizes_of_the_paper(n: int, window: int, local_window: int, s: int, k: int) -> None:
    assert s == math.ceil(Fraction(n - local_window, window - local_window))
    found_s, head = squeeze(torch.tensor(n), window, local_window)
    assert (int(found_s), int(head)) == (s, n - window + k)


@given(
    st.integers(1, 64),
    st.integers(1, 700),
    st.one_of(st.integers(1, 90), st.floats(0.001, 3.0)),
    st.integers(0, 700),
)
def test_chunks_reach_the_window_and_then_follow_chunk_coe(
    window: int, length: int, chunk_coe: int | float, past: int
) -> None:
    past = min(past, length - 1)
    sizes = get_chunk_size_list(length, window, chunk_coe, past)
    assert all(type(size) is int and size > 0 for size in sizes)
    assert past + sum(sizes) == length
    ends = [end for size, end in zip(sizes, torch.tensor(sizes).cumsum(0).tolist(), strict=True) for _ in range(size)]
    assert [past + end for end in ends] == chunk_ends(length, window, chunk_coe, past)


@pytest.mark.parametrize(
    ("length", "window", "chunk_coe", "past", "sizes"),
    [
        (10_001, 4096, 3000, 0, [4096, 3000, 2905]),
        (4096, 4096, 3000, 0, [4096]),
        (4097, 4096, 3000, 0, [4096, 1]),
        (17, 32, 3000, 0, [17]),
        (100, 32, 0.5, 0, [32, 16, 24, 28]),
        (40, 32, 0.001, 36, [1, 1, 1, 1]),
        (35, 32, 1, 0, [32, 1, 1, 1]),
        (40, 32, 1.0, 0, [32, 8]),
        (41, 32, 3000, 40, [1]),
        (41, 32, 5, 30, [2, 5, 4]),
    ],
)
def test_chunks_by_hand(length: int, window: int, chunk_coe: int | float, past: int, sizes: list[int]) -> None:
    assert get_chunk_size_list(length, window, chunk_coe, past) == sizes


def test_scores_are_interpolated_by_the_distance_to_the_ceiling() -> None:
    """Keys at 2 (an integer: its own score), 2 1/4 and 2 1/2, seen by two queries."""
    at_ceil = torch.tensor([[8.0, 8.0, 8.0], [0.0, 4.0, -2.0]])
    at_floor = torch.tensor([[0.0, 4.0, 6.0], [9.0, 0.0, 2.0]])
    found = attention_score_approximate(at_ceil, at_floor, torch.tensor([2.0, 2.25, 2.5]))
    assert found.tolist() == [[8.0, 5.0, 7.0], [0.0, 1.0, 0.0]]
