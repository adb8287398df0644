"""How prefill is cut into tiles, and that the kernel loads the records that the host writes."""

import pytest
import torch
import triton
import triton.language as tl

from models.DPI.attention.bands import Row
from models.DPI.attention.cards import ADA, AMPERE, Card
from models.DPI.attention.kernels import tiles
from models.DPI.attention.kernels.tiles import Tile, TileBand, Tiling
from models.DPI.attention.triton import HEAD_DIMS
from models.DPI.methods import build_method
from models.DPI.planning import Padding, make_plan
from tests.models.DPI import oracle

CPU = torch.device("cpu")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILING = Tiling(queries=16, keys=16, warps=4, stages=2)
NOISE = {"chunk_coe": 1, "local_window": 8, "noise_type": "gaussian"}


def _row(past: int, length: int) -> Row:
    method = build_method("dpi", NOISE, 32)
    return make_plan(method, oracle.rope(32, 16), Padding(None, past, length - past, 1), seed=0).rows[0]


@pytest.mark.parametrize("past", [0, 13, 40, 100])
@pytest.mark.parametrize("key_bytes", [1, 1 << 40])
def test_tiles_hold_every_query_once_and_no_two_segments(past: int, key_bytes: int) -> None:
    row = _row(past, 131)
    prepared = tiles.prepare(row, key_bytes, TILING, CPU)
    seen: list[int] = []
    for launch in prepared.launches:
        for first, end, *_ in launch.tiles.tolist():
            assert 0 < end - first <= TILING.queries
            assert first == 0 or end == 131 - past or first in _starts(row) or (first + past) % 8 == 0
            assert any(s.first - past <= first and end <= s.last - past for s in row.segments)
            seen += range(first, end)
    assert sorted(seen) == list(range(131 - past))
    assert (len(prepared.launches) > 1) == (key_bytes > 1 and len(row.segments) > 1)


def _starts(row: Row) -> set[int]:
    return {segment.first - row.segments[0].first for segment in row.segments}


def test_a_band_has_the_slot_of_its_table_and_the_gate_of_its_noise() -> None:
    row = _row(0, 131)
    prepared = tiles.prepare(row, 1, TILING, CPU)
    (launch,) = prepared.launches
    for record in launch.tiles.tolist():
        tile = Tile(*record[:2])
        segment = next(s for s in row.segments if s.first <= tile.first < s.last)
        bands = [TileBand(*record[at : at + 2]) for at in range(2, len(record), 2)]
        for band, found in zip(segment.bands[::-1], bands[::-1], strict=False):
            table, low, high = launch.tables[found.slot]
            assert table == band.table
            assert low <= int(band.start[0])
            assert int(band.stop[-1]) <= high
            period, pattern = prepared.gates[found.gate].tolist()
            if segment.noise_std is None or band.noise_period is None:
                assert (period, pattern) == (1, -1)
            else:
                assert [(pattern >> key) & 1 for key in range(64)] == [int(key % period == 0) for key in range(64)]


@triton.jit
def _copy_tile(records, number, out, BANDS: tl.constexpr):
    record = tiles.record_of_tile(records, number, BANDS)
    tile = tiles.load_tile(record)
    tl.store(out, tile.first)
    tl.store(out + 1, tile.end)
    for band in tl.static_range(BANDS):
        of_band = tiles.load_tile_band(record, band)
        tl.store(out + 2 + 2 * band, of_band.slot)
        tl.store(out + 3 + 2 * band, of_band.gate)


def test_the_kernel_loads_what_the_host_wrote() -> None:
    written = [*Tile(first=3, end=9), *TileBand(slot=4, gate=5), *TileBand(slot=6, gate=7)]
    records = torch.tensor([[0] * 6, [0] * 6, written], dtype=torch.int32, device=DEVICE)
    out = torch.zeros(6, dtype=torch.int32, device=DEVICE)
    _copy_tile[(1,)](records, 2, out, BANDS=2)
    assert out.tolist() == [3, 9, 4, 5, 6, 7]


@pytest.mark.parametrize("card", [AMPERE, ADA], ids=["8.0", "8.9"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(("num_queries", "noisy"), [(9, False), (999, False), (9, True), (999, True)])
def test_tilings_without_a_copy_engine_fit_the_card(num_queries: int, noisy: bool, head_dim: int, card: Card) -> None:
    tiling = tiles.tiling(head_dim, num_queries, noisy, card)
    row = 2 * triton.next_power_of_2(head_dim)  # bytes
    held = (2 * (tiling.stages - 1) * tiling.keys + tiling.queries) * row  # the queries pass through shared memory
    assert held <= card.shared_memory
    assert tiling.queries >= 16 * tiling.warps or not noisy  # as `kernels.noise` reads deviates
    assert tiling.keys % 32 == 0  # blocks of deviates
