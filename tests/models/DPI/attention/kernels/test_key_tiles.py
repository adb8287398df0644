"""How keys are cut into tiles for the backward pass, and that the kernel loads the records that the host writes."""

import pytest
import torch
import triton
import triton.language as tl

from models.DPI.attention.bands import Row
from models.DPI.attention.kernels import key_tiles, tiles
from models.DPI.attention.kernels.key_tiles import Entry, Run
from models.DPI.attention.kernels.tiles import Tiling
from models.DPI.methods import build_method
from models.DPI.planning import Padding, make_plan
from tests.models.DPI import oracle

CPU = torch.device("cpu")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILING = Tiling(queries=16, keys=16, warps=4, stages=2)
METHODS = {
    "dpi": {"chunk_coe": 1, "local_window": 8},
    "repro_chunkllama": {"local_window": 5},
    "streaming_llm": {"sinks": 3, "window_size": 17},
}


def _row(method: str, past: int, length: int) -> Row:
    built = build_method(method, METHODS[method], 32)
    return make_plan(built, oracle.rope(32, 16), Padding(None, past, length - past, 1), seed=0).rows[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("past", [0, 13, 100, 130])
@pytest.mark.parametrize("key_bytes", [1, 1 << 40])
@pytest.mark.parametrize("size", [4, 16])
def test_tiles_have_every_query_that_sees_them(method: str, past: int, key_bytes: int, size: int) -> None:
    """Pairs of a query and a key that the records mean, each once, are those of the bands, through the same tables."""
    n = 131
    row = _row(method, past, n)
    prepared = tiles.prepare(row, key_bytes, TILING, CPU)
    found = torch.zeros(n - past, n, dtype=torch.long)
    for launch, cut in zip(prepared.launches, key_tiles.cut(row, prepared, size, CPU), strict=True):
        assert len(cut.first_runs) == -(-n // size) + 1
        assert (cut.first_runs.diff() > 0).all()
        assert cut.several == bool((cut.first_runs.diff() > 1).any())
        for tile in range(len(cut.first_runs) - 1):
            keys = torch.arange(tile * size, min((tile + 1) * size, n))
            runs = [Run(*run) for run in cut.runs[cut.first_runs[tile] : cut.first_runs[tile + 1]].tolist()]
            assert len({run.slot for run in runs}) == len(runs)
            for run in runs:
                for entry in (Entry(*one) for one in cut.entries[run.first : run.end].tolist()):
                    start, stop = prepared.bounds[:, entry.band, entry.low : entry.high, None]
                    seen = (keys >= start) & (keys < stop)
                    found[entry.low : entry.high, keys] += seen
                    whole = seen[max(entry.low_whole - entry.low, 0) : max(entry.high_whole - entry.low, 0)]
                    assert whole.all()
                    assert entry.low <= entry.low_whole
                    assert entry.high_whole <= max(entry.high, 0)
                    if entry.low < entry.high:
                        at = entry.low + past
                        segment = next(s for s in row.segments if s.first <= at < s.last)
                        assert entry.high + past <= segment.last
                        band = segment.bands[entry.band - prepared.num_bands]
                        assert launch.tables[run.slot][0] == band.table
    expected = torch.zeros_like(found)
    for segment in row.segments:
        for band in segment.bands:
            keys = torch.arange(n)
            inside = (keys >= band.start[:, None]) & (keys < band.stop[:, None])
            expected[segment.first - past : segment.last - past] += inside
    assert torch.equal(found, expected)


@triton.jit
def _copy(runs, entries, number, out):
    run = key_tiles.load_run(runs, number)
    tl.store(out, run.slot)
    tl.store(out + 1, run.first)
    tl.store(out + 2, run.end)
    entry = key_tiles.load_entry(entries, number)
    tl.store(out + 3, entry.band)
    tl.store(out + 4, entry.low)
    tl.store(out + 5, entry.low_whole)
    tl.store(out + 6, entry.high_whole)
    tl.store(out + 7, entry.high)


def test_the_kernel_loads_what_the_host_wrote() -> None:
    run, entry = Run(slot=1, first=2, end=3), Entry(band=4, low=5, low_whole=6, high_whole=7, high=8)
    runs, entries = (torch.tensor([[0] * len(x), [*x]], dtype=torch.int32, device=DEVICE) for x in (run, entry))
    out = torch.zeros(8, dtype=torch.int32, device=DEVICE)
    _copy[(1,)](runs, entries, 1, out)
    assert out.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
