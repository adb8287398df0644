"""The kernels for CUDA on a paged cache made by hand: against the definition in fp64 on contiguous keys, by the 2x rule
of `tests/models/DPI/attention/test_triton.py`. On a CPU they run in Triton's interpreter. They need no vLLM.
"""

import functools
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from vllm_gali import cuda, paged, pieces

from models.DPI.attention import reference
from models.DPI.attention import triton as fused
from models.DPI.methods import Rope, build_method
from models.DPI.methods.base import frequencies_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GALI: dict[str, Any] = {"chunk_coe": 1, "local_window": 16}
NAN = float("nan")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What buffers hold before they are written is not a number."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(make)
        def made(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(NAN) if tensor.is_floating_point() else tensor

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(Tensor, "new_empty", poison(Tensor.new_empty))


@dataclass(frozen=True)
class Case:
    """requests: of each its tokens, and how many of them are of this step. heads: of queries and keys."""

    name: str
    method: str = "dpi"
    params: dict[str, Any] = field(default_factory=lambda: GALI)
    requests: Sequence[tuple[int, int]] = ((187, 1),)
    head_dim: int = 64
    heads: tuple[int, int] = (2, 1)
    page: int = 16
    window: int = 64
    dtype: torch.dtype = torch.float16

    def __str__(self) -> str:
        return self.name


class Paged:
    """A case's requests in a cache whose blocks are shuffled, and whose free places are not numbers."""

    def __init__(self, case: Case, room: int = 0) -> None:
        """room: tokens that each request may grow by."""
        self.case = case
        self.generator = torch.Generator().manual_seed(len(case.requests) + case.head_dim)
        self.rope = Rope(frequencies_of(5000.0, case.head_dim), case.window, 5000.0)
        self.method = build_method(case.method, case.params, case.window)
        most = -(-max(length + room for length, _ in case.requests) // case.page)
        count = len(case.requests)
        order = torch.randperm(most * count + 3, generator=self.generator).int()
        self.table = order[:-3].reshape(count, most).contiguous()
        free = int(order[-1])  # what vLLM leaves behind a request's last block
        for row, (length, _) in zip(self.table, case.requests, strict=True):
            row[-(-(length + room) // case.page) :] = free
        self.table = self.table.to(DEVICE)
        shape = (len(order), case.heads[1], case.page, 2 * case.head_dim)
        self.cache = torch.full(shape, NAN, dtype=case.dtype, device=DEVICE)
        self.keys = [self._draw(length + room, case.heads[1]) for length, _ in case.requests]
        self.values = [self._draw(length + room, case.heads[1]) for length, _ in case.requests]
        self.kept: dict[Any, Any] = {}
        for number, (length, _) in enumerate(case.requests):
            self.write(number, 0, length)

    def _draw(self, length: int, heads: int) -> Tensor:
        drawn = torch.randn(length, heads, self.case.head_dim, generator=self.generator)
        return drawn.to(DEVICE, self.case.dtype)

    def write(self, number: int, first: int, last: int) -> None:
        """Tokens first ... last - 1 of a request, behind which the step has padding."""
        tokens = torch.arange(first, last, device=DEVICE)
        slots = self.table[number, tokens // self.case.page].long() * self.case.page + tokens % self.case.page
        slots = torch.cat((slots, slots.new_full((2,), -1)))
        key, value = (torch.nn.functional.pad(x[number][first:last], (0, 0, 0, 0, 0, 5), value=7.0) for x in
                      (self.keys, self.values))  # fmt: skip
        cuda.write(key, value, self.cache, slots)

    def batch(self, requests: Sequence[tuple[int, int]]) -> paged.Batch:
        """The step of these requests."""
        starts = [0, *torch.tensor([new for _, new in requests]).cumsum(0).tolist()]
        lengths = [length for length, _ in requests]
        segments = [self.method.segments(self.rope, n - new, n) if new else [] for n, new in requests]
        return paged.Batch(starts, lengths, self.table, segments, kept=self.kept)

    def queries(self, batch: paged.Batch) -> Tensor:
        """Random ones, as a view of what a model projects, and two of padding."""
        tokens = batch.starts[-1] + 2
        whole = torch.randn(tokens, self.case.heads[0] + 3, self.case.head_dim, generator=self.generator)
        return whole.to(DEVICE, self.case.dtype)[:, : self.case.heads[0]]

    def attend(self, query: Tensor, batch: paged.Batch, scaling: float = 0.125) -> Tensor:
        """What the kernels make of a step."""
        out = torch.full(query.shape, NAN, dtype=query.dtype, device=DEVICE)
        cuda.attend(query, self.cache, batch, scaling, out)
        assert out[batch.starts[-1] :].isnan().all(), "what no request owns is left alone"
        return out[: batch.starts[-1]]

    def by_definition(self, query: Tensor, batch: paged.Batch, dtype: torch.dtype, scaling: float = 0.125) -> Tensor:
        """The same on contiguous keys, computed in a type."""
        found = [query.new_zeros(0, *query.shape[1:]).to(dtype)]
        for number, segments in enumerate(batch.segments):
            if segments:
                at, length = slice(batch.starts[number], batch.starts[number + 1]), batch.lengths[number]
                q, k, v = (
                    x.to(dtype).transpose(0, 1)[None]
                    for x in (query[at], self.keys[number][:length], self.values[number][:length])
                )
                found.append(reference.attend(q, k, v, segments, scaling=scaling)[0][0].transpose(0, 1))
        return torch.cat(found)

    def check(self, requests: Sequence[tuple[int, int]]) -> None:
        """At most twice the error of plain attention in the same type."""
        batch = self.batch(requests)
        query = self.queries(batch)
        self.compare(query, batch, self.attend(query, batch))

    def compare(self, query: Tensor, batch: paged.Batch, out: Tensor) -> None:
        """See `check`."""
        exact = self.by_definition(query, batch, torch.float64)
        plain = self.by_definition(query, batch, query.dtype)
        allowed = 2 * float((plain.double() - exact).abs().max())
        assert float((out.double() - exact).abs().max()) <= allowed  # NaN fails too
        assert float((out.double() - exact).norm() / exact.norm()) < (1e-2 if query.dtype == torch.bfloat16 else 2e-3)


# Within the window and beyond it, a block's last token and its first, a request that is not in this step.
MIXED = ((50, 1), (203, 1), (64, 0), (17, 1), (96, 1), (1, 1))
SMALL = [
    Case("requests of unequal length", requests=MIXED, heads=(4, 2)),
    Case("blocks of 48", requests=((203, 1), (49, 1)), page=48, head_dim=80),
    Case("SelfExtend", "repro_se", {"group_size": 7, "window_size": 40}, ((233, 1), (40, 1)), 96, (3, 1)),
    Case("a real ratio", "repro_se", {"group_size": 2.7, "window_size": 20}, ((140, 1), (12, 1))),
    Case("YaRN", "repro_yarn", {"factor": 8.0}, ((187, 1),), 128, page=64),
    Case("a gap", "streaming_llm", {"sinks": 4, "window_size": 33}, ((190, 1), (30, 1))),
    Case("all at one distance, log n", "rerope", {"window_size": 20}, ((130, 1),)),
    Case("wide heads", requests=((90, 1),), head_dim=256, heads=(1, 1)),
    Case("a stretch wider than a tile, and narrow ones", params={"chunk_coe": 1, "local_window": 5},
         requests=((230, 1), (6, 1), (20, 1)), window=8),
    Case("heads of 112", requests=((90, 1), (70, 9)), head_dim=112),
    Case("heads of 192", requests=((90, 1), (70, 9)), head_dim=192, heads=(1, 1)),
    Case("chunked prefill", requests=((150, 37), (70, 70)), heads=(4, 2)),
    Case("prefill and decoding", requests=((90, 1), (131, 20), (64, 0), (33, 1)), page=32),
    Case("prefill, SelfExtend", "repro_se", {"group_size": 7, "window_size": 40}, ((133, 31),), 96),
    Case("prefill, a gap", "streaming_llm", {"sinks": 4, "window_size": 33}, ((190, 21),), page=48),
    Case("prefill, real stretches", "multi_scale", {"edges": [17, 40, 90], "scales": [2, 3.3, 7]}, ((151, 19),), 80),
]  # fmt: skip


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_against_the_definition(case: Case) -> None:
    Paged(case).check(case.requests)


def test_prefill_in_chunks_is_prefill_whole() -> None:
    """A prompt in three steps, the last of one token, with what the kernels wrote before."""
    case = Case("whole", requests=((131, 131),))
    cache = Paged(case)
    whole = cache.batch(case.requests)
    query = cache.queries(whole)[:131]
    expected = cache.attend(torch.cat((query, query[:2])), whole)
    cache.cache.fill_(NAN)
    for first, last in ((0, 77), (77, 130), (130, 131)):
        cache.write(0, first, last)
        padded = torch.cat((query[first:last], query[:2]))
        found = cache.attend(padded, cache.batch(((last, last - first),)))
        assert (found.float() - expected[first:last].float()).abs().max() < 4e-3


def test_layers_of_a_step_share_what_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared once, for other queries and keys too; the counters of arrivals are as they were."""
    case = Case("layers", requests=((150, 1), (70, 9)))
    cache = Paged(case)
    batch = cache.batch(case.requests)
    query = cache.queries(batch)
    cache.compare(query, batch, cache.attend(query, batch))
    monkeypatch.setattr(pieces, "prepare", None)
    for layer in (2, 3):
        cache.compare(layer * query, batch, cache.attend(layer * query, batch))


def test_steps_stay_in_the_tensors_of_those_before() -> None:
    """Requests that grow by a token, a batch with fewer, and one with more again: no record of an earlier step runs."""
    case = Case("steps", requests=((60, 1), (150, 1), (33, 1)))
    cache = Paged(case, room=3)
    signatures = []
    for grown, active in ((0, (1, 1, 1)), (1, (1, 1, 1)), (2, (0, 1, 0)), (3, (1, 0, 1))):
        requests = [(length + grown, new) for (length, _), new in zip(case.requests, active, strict=True)]
        for number, (length, _) in enumerate(requests):
            cache.write(number, length - 1, length)
        cache.check(requests)
        (room,) = cache.kept.values()
        signatures.append(room.step.signature)
        assert not room.step.arrivals.any()
        assert all(not launch.records[launch.used :].any() for launch in room.step.launches)
    assert len(set(signatures)) == 1


def test_a_step_that_was_written_over_is_refused() -> None:
    case = Case("two", requests=((60, 1),))
    cache = Paged(case)
    first, second = cache.batch(case.requests), cache.batch(case.requests)
    query = cache.queries(first)
    cache.attend(query, first)
    cache.attend(query, second)
    with pytest.raises(RuntimeError, match="a later step was prepared"):
        cache.attend(query, first)


def test_padded_requests_run_nothing() -> None:
    case = Case("padded", requests=((60, 0), (0, 0)))
    cache = Paged(case)
    cache.check(((60, 1), (0, 0)))
    batch = cache.batch(case.requests)
    assert cache.attend(cache.queries(batch), batch).shape[0] == 0


def test_a_cache_of_another_type_or_block_size_is_refused() -> None:
    case = Case("refused")
    cache = Paged(case)
    batch = cache.batch(case.requests)
    query = cache.queries(batch)
    with pytest.raises(ValueError, match=r"cache holds torch.float16 and queries are torch.bfloat16"):
        cuda.attend(query.bfloat16(), cache.cache, batch, 0.1, query)
    with pytest.raises(ValueError, match="blocks of 8 tokens"):
        cuda.attend(query, cache.cache[:, :, :8], batch, 0.1, query)


def test_obstacles_are_named() -> None:
    device = torch.device(DEVICE)
    assert "5 query heads are no multiple of 2" in str(cuda.obstacle(cuda.Shape(5, 2, 64), torch.float16, device))
    if DEVICE == "cpu":
        assert "needs a CUDA device" in str(cuda.obstacle(cuda.Shape(4, 2, 64), torch.float16, device))
    else:
        assert cuda.obstacle(cuda.Shape(4, 2, 64), torch.float16, device) is None
        assert "head_dim = 72" in str(cuda.obstacle(cuda.Shape(4, 2, 72), torch.float16, device))
        assert "bfloat16 and float16" in str(cuda.obstacle(cuda.Shape(4, 2, 64), torch.float32, device))


@pytest.mark.parametrize("per_head", [0.5, 4.0, 16.5, 132.0])
@pytest.mark.parametrize("tiles", [[1], [196, 64], [2048, 3], [5] * 300, [30, 2000, 1, 1, 700], [40_000]])
def test_pieces_hold_every_tile_once(tiles: list[int], per_head: float) -> None:
    names = pieces.Piece._fields
    bands = torch.zeros(len(tiles), len(names) + 1, dtype=torch.int64)
    bands[:, names.index("row")] = torch.arange(len(tiles)) // 2  # two bands of a request
    bands[:, names.index("table")] = torch.arange(len(tiles))
    bands[:, names.index("low")] = 7
    bands[:, names.index("high")] = 7 + torch.tensor(tiles)
    found = [pieces.Piece(*row[:-1]) for row in pieces._cut(bands, per_head).tolist()]
    for band, count in enumerate(tiles):
        of_band = [piece for piece in found if piece.table == band]
        assert [tile for piece in of_band for tile in range(piece.low, piece.high)] == list(range(7, 7 + count))
        assert all(piece.high - piece.low <= 512 for piece in of_band)
    for row in range(-(-len(tiles) // 2)):
        of_row = [number for number, piece in enumerate(found) if piece.row == row]
        assert of_row == list(range(of_row[0], of_row[0] + len(of_row)))
        for place, number in enumerate(of_row):
            piece = found[number]
            assert (piece.first, piece.share, piece.number) == (of_row[0], len(of_row), place)


@pytest.mark.parametrize("tiles", [[196, 64], [512, 33], [2050, 33], [2050, 33] * 8, [2050, 33, 5, 3, 200], [40] * 99])
def test_pieces_are_done_soon(tiles: list[int]) -> None:
    """On 132 multiprocessors for 8 key heads, each piece begun where a program has ended: a tenth above the least."""
    bands = torch.zeros(len(tiles), len(pieces.Piece._fields) + 1, dtype=torch.int64)
    bands[:, pieces._AT.high] = torch.tensor(tiles)
    bands[:, pieces._AT.row] = torch.arange(len(tiles)) // 2
    found = pieces._cut(bands, 16.5)
    lengths = sorted((found[:, pieces._AT.high] - found[:, pieces._AT.low]).tolist(), reverse=True)
    ends = [0.0] * 33
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    assert max(ends) <= 1.1 * sum(tiles) / 33 + 1


def test_the_workspace_holds_what_a_layer_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted as it is allocated, with a budget for rotated keys that three tables of four do not fit."""
    monkeypatch.setattr("models.DPI.attention.kernels.tiles.KEY_BYTES", 1)
    monkeypatch.setattr("vllm_gali.gali_kernels.KEY_BYTES", 1)
    monkeypatch.setattr("vllm_gali.gali_kernels.CACHED_KEYS", 0)  # tables are kept by the first layer for all
    case = Case("workspace", requests=((300, 41),), heads=(4, 2), window=32)
    cache = Paged(case)
    made: list[int] = []
    for owner, name in ((torch, "empty"), (Tensor, "new_empty")):
        make = getattr(owner, name)

        def counted(*args: Any, make: Any = make, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            made.append(tensor.nbytes if tensor.dtype == case.dtype else 0)
            return tensor

        monkeypatch.setattr(owner, name, counted)
    cache.check(case.requests)
    allowed = cuda.workspace(cuda.Shape(4, 2, 64), 2, 300, 41)
    assert 0.9 * allowed <= sum(made) <= allowed


GRID = [
    Case("decoding", requests=((2311, 1), (400, 1), (1, 1), (1025, 1), (777, 0)), window=512),
    Case("decoding, SelfExtend", "repro_se", {"group_size": 9, "window_size": 200}, ((1777, 1), (90, 1)), window=512),
    Case("decoding, a real ratio", "repro_se", {"group_size": 9.5, "window_size": 200}, ((1777, 1),), window=512),
    Case("prefill", requests=((2311, 777), (600, 600), (1300, 1)), window=512),
    Case("prefill, SelfExtend", "repro_se", {"group_size": 9, "window_size": 200}, ((1777, 301),), window=512),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", fused.HEAD_DIMS)
@pytest.mark.parametrize("number", range(len(GRID)), ids=[str(case) for case in GRID])
def test_grid(number: int, head_dim: int, dtype: torch.dtype) -> None:
    turn = number + fused.HEAD_DIMS.index(head_dim)
    page, heads = (16, 64, 48)[turn % 3], [(4, 4), (8, 2), (7, 1)][turn % 3 - turn // 3 % 3]
    case = replace(GRID[number], page=page, head_dim=head_dim, heads=heads, dtype=dtype)
    Paged(case).check(case.requests)


@pytest.mark.gpu
def test_a_recorded_step_computes_those_after_it() -> None:
    """Requests grow, one of them beyond the window; a batch of fewer requests is another step of the same graph."""
    case = Case("recorded", requests=((60, 1), (1500, 1), (333, 1)), heads=(8, 2), head_dim=128)
    cache = Paged(case, room=40)
    batch = cache.batch(case.requests)
    query = cache.queries(batch)
    cache.compare(query, batch, cache.attend(query, batch))
    shape = cuda.Shape(*case.heads, case.head_dim)
    (room,) = cache.kept.values()
    recorded = room.step.signature
    out = torch.full(query.shape, NAN, dtype=query.dtype, device=DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cuda.attend(query, cache.cache, batch, 0.125, out)
    for grown in (1, 5, 40):
        requests = [(length + grown, 1) for length, _ in case.requests]
        for number, (length, _) in enumerate(requests):
            cache.write(number, length - grown, length)
        batch = cache.batch(requests)
        cuda.prepare(batch, shape, torch.device(DEVICE))
        assert room.step.signature == recorded
        query.copy_(cache.queries(batch))
        out.fill_(NAN)
        graph.replay()
        cache.compare(query, batch, out[: len(requests)])


@pytest.mark.gpu
def test_layers_wait_for_nothing() -> None:
    """After the first layer of a step; a wait of the CPU for the GPU is an error here."""
    case = Case("no waiting", requests=((1500, 1), (333, 1), (900, 77)), heads=(8, 2), head_dim=128)
    cache = Paged(case)
    batch = cache.batch(case.requests)
    query = cache.queries(batch)
    key, value = query[:, :2].contiguous(), query[:, 2:4].contiguous()
    slots = torch.full((len(query),), -1, device=DEVICE)
    cuda.write(key, value, cache.cache, slots)
    out = torch.empty_like(query)
    cuda.attend(query, cache.cache, batch, 0.125, out)
    torch.cuda.set_sync_debug_mode("error")
    try:
        cuda.write(key, value, cache.cache, slots)
        cuda.attend(query, cache.cache, batch, 0.125, out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    cache.compare(query, batch, out[: batch.starts[-1]])


def test_the_kernel_is_the_cpus_implementation_by_another_way() -> None:
    """`gather` on the same cache gives the same."""
    case = Case("gather", requests=((150, 1), (70, 9)), heads=(4, 2))
    cache = Paged(case)
    batch = cache.batch(case.requests)
    query = cache.queries(batch)
    out = torch.full(query.shape, NAN, dtype=query.dtype, device=DEVICE)
    paged.gather(query, cache.cache, batch, 0.125, out)
    found = cache.attend(query, batch)
    assert (found.float() - out[: batch.starts[-1]].float()).abs().max() < 4e-3
