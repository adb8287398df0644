"""How decoding is cut into programs, and tensors of a step written anew for the next."""

import itertools

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from models.DPI.attention.cards import ADA, AMPERE, HOPPER, Card
from models.DPI.attention.kernels import pieces
from models.DPI.attention.prepared import PreparedStep, StepShape
from models.DPI.methods import build_method
from models.DPI.planning import Padding, make_plan
from tests.models.DPI import oracle

CPU = torch.device("cpu")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROPE = oracle.rope(64, 32)
bands = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 2500)).map(lambda t: (t[0], sum(t))), min_size=1, max_size=3
)


@given(tiles=bands, multiprocessors=st.floats(0.2, 132), relative=st.booleans())
def test_programs_take_every_tile_once(tiles: list[tuple[int, int]], multiprocessors: float, relative: bool) -> None:
    shares = pieces._best_shares(tuple(tiles), multiprocessors, relative)
    found = sorted((b, tile) for b, low, high in shares for tile in range(low, high))
    assert found == [(b, tile) for b, (low, high) in enumerate(tiles) for tile in range(low, high)]
    assert all(0 < high - low <= 512 for _, low, high in shares)


@given(tiles=bands, multiprocessors=st.floats(0.2, 132), relative=st.booleans())
def test_programs_are_no_more_than_there_are_turns_for(
    tiles: list[tuple[int, int]], multiprocessors: float, relative: bool
) -> None:
    shares = pieces._best_shares(tuple(tiles), multiprocessors, relative)
    needed = sum(-(-(high - low) // 512) for low, high in tiles)  # a program takes 512 tiles of one band at most
    assert len(shares) <= max(len(tiles), 16 * 2 * multiprocessors, needed)
    if sum(high - low for low, high in tiles) <= 64 * multiprocessors:  # a few tiles each: one turn
        assert len(shares) <= max(len(tiles), 2 * multiprocessors, needed)


def test_pieces_of_bands_are_even_and_whole() -> None:
    for most, first, second in itertools.product((1, 2, 7, 33), (0, 1, 64), (1, 3, 200)):
        tiles = [(5, 5 + first), (9, 9 + second)]
        shares = pieces._shares(tiles, most)
        covered = [(band, tile) for band, low, high in shares for tile in range(low, high)]
        assert covered == [(0, t) for t in range(5, 5 + first)] + [(1, t) for t in range(9, 9 + second)]
        assert len(shares) <= max(most, 2)


def test_one_row_of_16384_keys_on_132_multiprocessors() -> None:
    """196 tiles of the head and 64 of the tail, 16.5 programs per key head: none has more than 17."""
    shares = pieces._best_shares(((0, 196), (192, 256)), 16.5, relative=True)
    assert len(shares) == 16
    assert max(high - low for _, low, high in shares) == 17


@pytest.mark.parametrize(
    ("tiles", "rows", "relative", "least", "most"),
    [
        (((0, 480), (448, 512)), 1, True, 13, 16),  # one program a multiprocessor
        (((0, 480), (448, 512)), 1, False, 30, 33),  # every key's table is read: two
        (((0, 196), (192, 256)), 8, True, 4, 4),  # two, in one turn
        (((0, 480), (448, 512)), 32, True, 4, 8),  # one would be left long after the others
        (((0, 8090), (8090, 8192)), 1, False, 50, 99),
    ],
)
def test_cuts_that_were_measured_to_be_fastest(
    tiles: tuple[tuple[int, int], ...], rows: int, relative: bool, least: int, most: int
) -> None:
    """32,768, 16,384 and 524,288 keys of 8 key heads on 132 multiprocessors; figures: benchmarks/RESULTS.md."""
    assert least <= len(pieces._best_shares(tiles, 132 / (8 * rows), relative)) <= most


def _prepare(n: int, rows: int = 1, previous: PreparedStep | None = None) -> PreparedStep:
    method = build_method("dpi", {"chunk_coe": 1, "local_window": 16}, 64)
    plan = make_plan(method, ROPE, Padding(None, n - 1, 1, rows), seed=0)
    return pieces.prepare_step(plan, StepShape(rows, 4, 2, 32, CPU), previous=previous, multiple=4)


@triton.jit
def _copy_piece(records, number, out):
    piece = pieces.load_piece(records, number)
    tl.store(out + 0, piece.left)
    tl.store(out + 1, piece.query)
    tl.store(out + 2, piece.low)
    tl.store(out + 3, piece.high)
    tl.store(out + 4, piece.start)
    tl.store(out + 5, piece.stop)
    tl.store(out + 6, piece.step)
    tl.store(out + 7, piece.period)
    tl.store(out + 8, piece.band)
    tl.store(out + 9, tl.load(piece.cos + 5).to(tl.int32))
    tl.store(out + 10, tl.load(piece.sin + 5).to(tl.int32))


def test_the_kernel_loads_what_the_host_wrote() -> None:
    cos, sin = (torch.arange(first, first + 8.0, device=DEVICE) for first in (100, 200))
    piece = pieces.Piece(
        left=1,
        query=2,
        low=3,
        high=4,
        start=5,
        stop=6,
        step=7,
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        period=8,
        band=9,
    )
    records = torch.tensor([[0] * len(piece), piece], device=DEVICE)
    out = torch.zeros(11, dtype=torch.int32, device=DEVICE)
    _copy_piece[(1,)](records, 1, out)
    assert out.tolist() == [*range(1, 10), 105, 205]


def test_a_step_is_written_where_the_one_before_was() -> None:
    first = _prepare(200)
    then = _prepare(201, previous=first)
    fresh = _prepare(201)
    for name in ("pieces", "numbers"):
        assert getattr(then, name) is getattr(first, name)
        assert torch.equal(getattr(then, name), getattr(fresh, name))
    assert then.parts is first.parts
    assert then.key_tables[0][0].data_ptr() == int(then.pieces[0, 0, pieces.Piece._fields.index("cos")])


@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_that_does_not_fit_gets_tensors_of_its_own(rows: int) -> None:
    first = _prepare(200, rows)
    other = _prepare(40, rows, previous=first)  # within the window: one band
    assert other.pieces is not first.pieces
    assert other.options["BANDS"] == 1


@pytest.mark.parametrize("card", [AMPERE, ADA], ids=["8.0", "8.9"])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("group", [8, 32])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_tiles_in_flight_fit_the_card(head_dim: int, group: int, relative: bool, card: Card) -> None:
    half = head_dim // 2
    stages = pieces._stages(2 * head_dim, half, group, relative, card)
    tables = 0 if relative else 2 * 64 * half * 4
    held = (stages - 1) * (2 * 64 * head_dim * 2 + tables)
    queries = 4 * head_dim * group * 2  # of four warps
    assert stages == 1 or held + queries <= card.shared_memory
    assert (stages == 1) == (32768 * head_dim // 128 + tables + queries > card.shared_memory)


def test_only_later_cards_start_a_launch_early() -> None:
    gpu = torch.device("cuda")
    assert [pieces._starts_early(gpu, card) for card in (AMPERE, ADA, HOPPER)] == [False, False, True]
    assert not pieces._starts_early(CPU, HOPPER)
