"""The fused kernels against the definition in fp64, by the 2x rule: at most twice the error of plain attention in the
same type. On a CPU the kernels run in Triton's interpreter, on small cases; with a GPU they are compiled.

For cards without a copy engine they are chosen, read and cut otherwise: `as_card` has it so on any machine. A GPU then
runs the code of that card, all but the last translation into its own instructions.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.DPI.attention import api, cards, reference
from models.DPI.attention import triton as fused
from models.DPI.attention.bands import Plan
from models.DPI.attention.cards import ADA, AMPERE, Card
from models.DPI.methods import build_method
from models.DPI.planning import Padding, make_plan
from tests.models.DPI import oracle

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHUNK_FREE: dict[str, Any] = {"chunk_coe": 1, "local_window": 16}
NOISE: dict[str, Any] = {**CHUNK_FREE, "noise_type": "gaussian"}
GROUPS: dict[str, Any] = {"group_size": 7, "window_size": 40}
LOGN = {"temperature": "logn"}


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernels' buffers hold before they are written is not a number."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(make)
        def made(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor if tensor.requires_grad or not tensor.is_floating_point() else tensor.fill_(float("nan"))

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(Tensor, "new_empty", poison(Tensor.new_empty))


@pytest.fixture
def as_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Card], None]]:
    """Makes the kernels take any device for a card."""
    from triton import knobs

    from models.DPI.attention.kernels import decode, prefill, rotate

    def forget() -> None:
        if DEVICE == "cuda":
            for kernel in (decode.decode_kernel, prefill.prefill_kernel, rotate.rotate_kernel):
                kernel.device_caches.clear()

    def become(card: Card) -> None:
        monkeypatch.setattr(cards, "card_of", lambda device: card)
        monkeypatch.setattr(knobs.runtime, "override_arch", "sm{}{}".format(*card.capability))
        forget()

    yield become
    forget()


def _plan(name: str, params: dict[str, Any], window: int, rotary_dim: int, padding: Padding, seed: int = 3) -> Plan:
    return make_plan(build_method(name, params, window), oracle.rope(window, rotary_dim), padding, seed=seed)


def _tensors(
    batch: int, heads: int, kv_heads: int, queries: int, keys: int, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Strided as a model's are, (B, T, H, D) in memory, within a cache whose free places are not numbers."""
    generator = torch.Generator().manual_seed(keys + head_dim)

    def draw(heads: int, length: int, free: int = 0) -> Tensor:
        whole = torch.full((batch, length + free, heads, head_dim), float("nan"), dtype=dtype)
        whole[:, :length] = torch.randn(batch, length, heads, head_dim, generator=generator).to(dtype)
        return whole.to(DEVICE).transpose(1, 2)[:, :, :length]

    return draw(heads, queries), draw(kv_heads, keys, 9), draw(kv_heads, keys, 9)


def _by_definition(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scaling: float, layer: int, **softmax: Any) -> Tensor:
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for row in plan.rows:
        keys = slice(row.left, row.left + row.length)
        queries = slice(row.first_query, row.first_query + row.num_queries)
        for r in row.rows:
            out[r : r + 1, :, queries] = reference.attend(
                q[r : r + 1, :, queries],
                k[r : r + 1, :, keys],
                v[r : r + 1, :, keys],
                row.segments,
                scaling=scaling,
                noise=plan.noise,
                layer=layer,
                **softmax,
            )[0]
    return out


def _check(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, out: Tensor, scaling: float, layer: int, **softmax: Any
) -> None:
    exact = _by_definition(q.double(), k.double(), v.double(), plan, scaling, layer, **softmax)
    plain = _by_definition(q, k, v, plan, scaling, layer, **softmax)
    allowed = 2 * float((plain.double() - exact).abs().max())
    assert float((out.double() - exact).abs().max()) <= allowed  # NaN fails too
    assert float((out.double() - exact).norm() / exact.norm()) < (1e-2 if q.dtype == torch.bfloat16 else 2e-3)


@dataclass(frozen=True)
class Case:
    """Attention of the last `queries` of `keys` tokens; heads: of queries and of keys. rotary_dim: all if None."""

    name: str
    method: str
    keys: int
    queries: int
    head_dim: int = 64
    heads: tuple[int, int] = (1, 1)
    params: dict[str, Any] = field(default_factory=dict)
    window: int = 64
    batch: int = 1
    dtype: torch.dtype = torch.float16
    softcap: float | None = None
    sinks: bool = False
    rotary_dim: int | None = None

    def __str__(self) -> str:
        return self.name

    def run(self, layer: int = 2) -> None:
        q, k, v = _tensors(self.batch, *self.heads, self.queries, self.keys, self.head_dim, self.dtype)
        padding = Padding(None, self.keys - self.queries, self.queries, self.batch)
        plan = _plan(self.method, self.params, self.window, self.rotary_dim or self.head_dim, padding)
        scaling = self.head_dim**-0.5
        sinks = torch.linspace(1.0, 6.0, self.heads[0], dtype=self.dtype, device=DEVICE) if self.sinks else None
        softmax: dict[str, Any] = {"softcap": self.softcap, "sinks": sinks}
        if self.queries == 1:
            out = fused.attend_one(q, k, v, plan, scaling=scaling, layer=layer, **softmax)
        else:
            out = fused.attend(q, k, v, plan.rows[0], scaling=scaling, noise=plan.noise, layer=layer, **softmax)
        _check(q, k, v, plan, out, scaling, layer, **softmax)


SMALL = [
    Case("chunk-free", "dpi", 217, 67, 64, (4, 1), CHUNK_FREE),
    Case("chunks", "dpi", 161, 161, 80, (2, 2), {"chunk_coe": 50, "local_window": 16}),
    Case("fractional", "dpi", 171, 70, 64, (3, 1), {"chunk_coe": 60, "local_window": 16, "appro_attn": False}),
    Case("noise", "dpi", 201, 69, 64, (2, 1), NOISE),
    Case("noise on all keys", "dpi", 131, 37, 96, (1, 1), {**NOISE, "addon_relcoef": 0, "scale_std": 0}),
    Case("uniform noise", "dpi", 150, 21, 256, (2, 1), {**NOISE, "noise_type": "uniform", "scale_max": 0}),
    Case("SelfExtend", "repro_se", 233, 71, 96, (2, 1), {"group_size": 7, "window_size": 40}),
    Case("whole tiles behind a boundary", "repro_se", 390, 40, 64, (1, 1), {"group_size": 7, "window_size": 200}, 256),
    Case("ChunkLlama", "repro_chunkllama", 219, 70, 128, (2, 1)),
    Case("YaRN", "repro_yarn", 100, 100, 256, (1, 1), {"factor": 4.0}),
    Case("soft cap", "dpi", 217, 67, 256, (4, 2), CHUNK_FREE, softcap=1.5),
    Case("sinks", "dpi", 187, 63, 64, (6, 2), CHUNK_FREE, sinks=True),
    Case("soft cap, sinks and noise", "dpi", 151, 37, 64, (2, 1), NOISE, softcap=1.0, sinks=True),
    Case("DPE", "dpe", 233, 71, 96, (2, 1), {"scales": [2, 8, 4, 3], "window_size": 20}),
    Case("real ratio", "repro_se", 199, 67, 64, (2, 1), {"group_size": 2.7, "window_size": 20}),
    Case("real stretches", "multi_scale", 231, 69, 64, (2, 1), {"edges": [17, 40, 90], "scales": [2, 3.3, 7]}),
    Case("a gap", "streaming_llm", 390, 70, 64, (2, 1), {"sinks": 4, "window_size": 33}),
    Case("all at one distance, log n", "rerope", 210, 70, 64, (2, 1), {"window_size": 20}),
    Case("a map of n", "lampe", 210, 70, 64, (1, 1), {"local_window": 9}),
    Case("shifted", "string", 110, 70, 64, (1, 1), {"shift": 40, "local_window": 9}),
    Case("heads of 112", "dpi", 131, 37, 112, (2, 1), CHUNK_FREE),
    Case("heads of 192", "repro_se", 131, 67, 192, (2, 1), GROUPS),
    Case("half rotates", "dpi", 167, 67, 128, (3, 1), CHUNK_FREE, rotary_dim=64),
    Case("half rotates, noise", "dpi", 151, 37, 64, (2, 1), NOISE, rotary_dim=32),
    Case("a quarter rotates, logn", "repro_yarn", 131, 70, 64, (2, 1), {"factor": 4.0} | LOGN, rotary_dim=16),
    Case("a quarter rotates, all keys' tables", "repro_chunkllama", 219, 70, 96, (2, 1), rotary_dim=24),
    Case("two fifths rotate, tempered", "repro_se", 131, 40, 80, (2, 1), GROUPS | {"temperature": 1.3}, rotary_dim=32),
    Case("three quarters rotate", "dpi", 131, 67, 192, (1, 1), CHUNK_FREE, rotary_dim=144),
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_many_queries(case: Case) -> None:
    case.run()


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_one_query(case: Case) -> None:
    replace(case, queries=1, batch=2).run()


def _without_copy_engine(case: Case, card: Card) -> Any:
    return pytest.param(case, card, id=f"{case}, {'.'.join(map(str, card.capability))}")


@pytest.mark.parametrize(
    ("case", "card"),
    [
        _without_copy_engine(Case("chunk-free", "dpi", 177, 131, 64, (2, 1), CHUNK_FREE), AMPERE),
        _without_copy_engine(Case("SelfExtend", "repro_se", 150, 131, 128, (1, 1), GROUPS), ADA),
        _without_copy_engine(Case("a narrow head", "dpi", 187, 67, 80, (2, 1), CHUNK_FREE), ADA),
        _without_copy_engine(Case("noise", "dpi", 201, 69, 64, (2, 1), NOISE), ADA),
        _without_copy_engine(Case("noise", "dpi", 131, 37, 192, (2, 1), NOISE), AMPERE),
        _without_copy_engine(Case("a wide head", "dpi", 187, 67, 256, (2, 1), CHUNK_FREE), ADA),
        _without_copy_engine(Case("sinks", "repro_chunkllama", 157, 40, 112, (2, 1), sinks=True), AMPERE),
        _without_copy_engine(Case("in part", "dpi", 157, 70, 96, (2, 1), CHUNK_FREE | LOGN, rotary_dim=24), ADA),
    ],
)
@pytest.mark.parametrize("queries", [None, 1])
def test_without_a_copy_engine(case: Case, card: Card, queries: int | None, as_card: Callable[[Card], None]) -> None:
    as_card(card)
    replace(case, batch=queries or 1, queries=queries or case.queries).run()


def test_one_query_and_a_stretch_wider_than_a_tile() -> None:
    Case("wide", "dpi", 230, 1, 64, (2, 1), {"chunk_coe": 1, "local_window": 5}, 8).run()


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("queries", [1, 66])
def test_log_sum_exp(queries: int, with_sinks: bool) -> None:
    keys, head_dim = 190, 64
    sinks = torch.linspace(-1.0, 6.0, 4, device=DEVICE) if with_sinks else None
    q, k, v = _tensors(2, 4, 2, queries, keys, head_dim, torch.float16)
    plan = _plan("dpi", CHUNK_FREE, 64, head_dim, Padding(None, keys - queries, queries, 2))
    lse = torch.full((2, 4, queries), float("nan"), device=DEVICE)
    if queries == 1:
        fused.attend_one(q, k, v, plan, scaling=0.1, sinks=sinks, lse=lse)
    else:
        fused.attend(q, k, v, plan.rows[0], scaling=0.1, sinks=sinks, lse=lse)
    past = keys - queries
    for segment in plan.rows[0].segments:
        at = slice(segment.first - past, segment.last - past)
        logits, covered = reference.logits_of(q[:, :, at].double(), k.double(), segment, scaling=0.1)
        expected = logits.masked_fill(~covered, float("-inf")).logsumexp(-1)
        if sinks is not None:
            expected = torch.logaddexp(expected, sinks.double()[None, :, None])
        assert torch.allclose(lse[:, :, at].double(), expected, atol=2e-3)


def test_one_launch_decodes_rows_of_different_padding() -> None:
    """Rows within the window, beyond it, padded on either side, and one without a token of its own."""
    n = 143
    mask = torch.zeros(5, n, dtype=torch.long)
    for row, (first, last) in enumerate([(0, n), (100, n), (31, n), (0, n), (0, n - 1)]):
        mask[row, first:last] = 1
    plan = _plan("dpi", NOISE, 48, 64, Padding.read(mask, 5, n - 1, 1))
    assert len(plan.rows) == 3
    q, k, v = _tensors(5, 2, 1, 1, n, 64, torch.float16)
    out = fused.attend_one(q, k, v, plan, scaling=0.125, layer=1)
    _check(q, k, v, plan, out, 0.125, 1)
    assert not out[4].any()


def test_repeated_launches_agree() -> None:
    """The counters of arrivals are as they were, and a new seed, layer or head has other noise."""
    q, k, v = _tensors(1, 2, 1, 1, 700, 64, torch.float16)
    q[:, 1] = q[:, 0]
    plan = _plan("dpi", {**NOISE, "std_base": 3.0}, 48, 64, Padding(None, 699, 1, 1))
    first = fused.attend_one(q, k, v, plan, scaling=0.125)
    assert torch.equal(fused.attend_one(q, k, v, plan, scaling=0.125), first)
    for layer in (1, 2, 3):  # other numbers in the same buffers
        _check(
            -layer * q, k, v, plan, fused.attend_one(-layer * q, k, v, plan, scaling=0.125, layer=layer), 0.125, layer
        )
    assert not torch.equal(fused.attend_one(q, k, v, plan, scaling=0.125, layer=1), first)
    assert not torch.equal(first[:, 0], first[:, 1])
    other = _plan("dpi", {**NOISE, "std_base": 3.0}, 48, 64, Padding(None, 699, 1, 1), seed=4)
    assert not torch.equal(fused.attend_one(q, k, v, other, scaling=0.125), first)


def test_tables_beyond_the_budget_go_in_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.DPI.attention.kernels.tiles.KEY_BYTES", 1)
    Case("many launches", "dpi", 90, 90, 64, (1, 1), CHUNK_FREE, 32).run()


GRID = [
    Case("chunk-free", "dpi", 2311, 2311, params=CHUNK_FREE),
    Case("chunks", "dpi", 2048, 777, params={"chunk_coe": 300, "local_window": 100}),
    Case("noise", "dpi", 2049, 778, params={"chunk_coe": 300, "local_window": 100, "noise_type": "gaussian"}),
    Case("noise, decoding", "dpi", 1999, 1, params=NOISE),
    Case("chunk-free, decoding", "dpi", 2311, 1, params=CHUNK_FREE),
    Case("SelfExtend", "repro_se", 1777, 1301, params={"group_size": 9, "window_size": 200}),
    Case("SelfExtend, decoding", "repro_se", 1777, 1, params={"group_size": 9, "window_size": 200}),
    Case("ChunkLlama", "repro_chunkllama", 2001, 999),
    Case("ChunkLlama, decoding", "repro_chunkllama", 2001, 1),
    Case("original", "repro_original", 129, 65),
    Case("soft cap", "dpi", 2311, 1311, params=CHUNK_FREE, softcap=1.5),
    Case("soft cap, decoding", "dpi", 2311, 1, params=CHUNK_FREE, softcap=1.5),
    Case("sinks", "dpi", 2311, 1311, params=CHUNK_FREE, sinks=True),
    Case("sinks, decoding", "dpi", 2311, 1, params=CHUNK_FREE, sinks=True),
    Case("soft cap, sinks and noise", "dpi", 2049, 778, params=NOISE, softcap=1.0, sinks=True),
    Case("soft cap, sinks and noise, decoding", "dpi", 1999, 1, params=NOISE, softcap=1.0, sinks=True),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", fused.HEAD_DIMS)
@pytest.mark.parametrize("number", range(len(GRID)))
def test_grid(number: int, head_dim: int, dtype: torch.dtype) -> None:
    heads = [(4, 4), (8, 2), (7, 1)][(number + fused.HEAD_DIMS.index(head_dim)) % 3]
    replace(GRID[number], window=512, head_dim=head_dim, heads=heads, dtype=dtype, batch=2).run()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("card", "head_dim"), [*((AMPERE, d) for d in fused.HEAD_DIMS), *((ADA, d) for d in (64, 128, 256))]
)
@pytest.mark.parametrize("number", range(len(GRID)))
def test_grid_without_a_copy_engine(number: int, head_dim: int, card: Card, as_card: Callable[[Card], None]) -> None:
    as_card(card)
    heads = [(4, 4), (8, 2), (7, 1)][(number + fused.HEAD_DIMS.index(head_dim)) % 3]
    replace(GRID[number], window=512, head_dim=head_dim, heads=heads, dtype=torch.bfloat16, batch=2).run()


@pytest.mark.gpu
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 16), (80, 32), (96, 24), (128, 96), (192, 96), (256, 64)])
@pytest.mark.parametrize("number", range(len(GRID)))
def test_grid_of_partly_rotary_heads(number: int, head_dim: int, rotary_dim: int) -> None:
    case = replace(GRID[number], window=512, head_dim=head_dim, rotary_dim=rotary_dim, heads=(8, 2), batch=2)
    replace(case, params=case.params | {"temperature": 1.2}).run()


@pytest.fixture
def padded() -> Tensor:
    mask = torch.zeros(4, 700, dtype=torch.long)
    for row, (first, last) in enumerate([(0, 700), (333, 700), (0, 699), (690, 700)]):
        mask[row, first:last] = 1
    return mask


@pytest.mark.gpu
@pytest.mark.parametrize("past", [0, 600, 699])
def test_padding_through_the_api(padded: Tensor, past: int) -> None:
    plan = _plan("dpi", NOISE, 128, 128, Padding.read(padded, 4, past, 700 - past))
    q, k, v = _tensors(4, 8, 2, 700 - past, 700, 128, torch.bfloat16)
    out, _ = api.attend(q, k, v, plan, scaling=0.1, layer=5, impl="triton")
    _check(q, k, v, plan, out, 0.1, 5)


@pytest.mark.gpu
def test_auto_takes_it_and_what_it_cannot_do_is_refused() -> None:
    q, _, _ = _tensors(1, 4, 2, 9, 99, 64, torch.bfloat16)
    plan = _plan("dpi", CHUNK_FREE, 64, 64, Padding(None, 90, 9, 1))
    assert api.choose("auto", q, plan) == "triton"
    assert api.choose("auto", q.float(), plan) == "sdpa"
    with pytest.raises(ValueError, match="bfloat16 and float16"):
        api.choose("triton", q.float(), plan)
    with pytest.raises(ValueError, match="head_dim = 32"):
        api.choose("triton", q[..., :32], plan)
    statistics = _plan("dpi", {**NOISE, "scale_mean": 1}, 64, 64, Padding(None, 90, 9, 1))
    with pytest.raises(ValueError, match="scale_mean = 1"):
        api.choose("triton", q, statistics)
    with pytest.raises(ValueError, match="FlashAttention adds no noise"):
        api.choose("flash", q, statistics)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "params"), [("dpi", CHUNK_FREE), ("repro_chunkllama", {})])
def test_flash_by_name(name: str, params: dict[str, Any]) -> None:
    q, k, v = _tensors(2, 4, 2, 301, 999, 128, torch.bfloat16)
    plan = _plan(name, params, 256, 128, Padding(None, 698, 301, 2))
    out, _ = api.attend(q, k, v, plan, scaling=0.1, impl="flash")
    _check(q, k, v, plan, out, 0.1, 0)
