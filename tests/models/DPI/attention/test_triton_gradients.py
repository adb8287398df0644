"""Gradients through the fused kernels against autograd through the definition in fp64, by the 2x rule: at most twice
the error of plain attention in the same type. Interpreted on a CPU, on small cases; with a GPU they are compiled.
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.DPI.attention import api, triton_gradients
from models.DPI.attention import triton as fused
from models.DPI.attention.backends import BACKENDS
from models.DPI.attention.bands import Plan
from models.DPI.attention.tables import KeyTable
from models.DPI.planning import Padding
from tests.models.DPI.attention import test_triton as forward
from tests.models.DPI.attention.test_triton import CHUNK_FREE, DEVICE, NOISE

poisoned_memory = forward.poisoned_memory


@pytest.fixture(autouse=True)
def runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name the kernels run on a CPU too, interpreted."""
    monkeypatch.setitem(BACKENDS, "triton", replace(BACKENDS["triton"], obstacle=lambda q, plan: None))


def _gradients(impl: str, inputs: list[Tensor], d_out: Tensor, plan: Plan, **softmax: Any) -> list[Tensor]:
    """Of queries, keys, values and, if they are the fourth input, sinks; in fp64."""
    given = [x.detach().requires_grad_() for x in inputs]
    q, k, v, *sinks = given
    out, _ = api.attend(q, k, v, plan, impl=impl, sinks=next(iter(sinks), None), **softmax)
    return [x.double() for x in torch.autograd.grad(out, given, d_out.to(out.dtype))]


def _check(inputs: list[Tensor], d_out: Tensor, plan: Plan, **softmax: Any) -> None:
    exact = _gradients("reference", [x.double() for x in inputs], d_out, plan, **softmax)
    plain = _gradients("reference", inputs, d_out, plan, **softmax)
    found = _gradients("triton", inputs, d_out, plan, **softmax)
    bound = 2e-2 if d_out.dtype == torch.bfloat16 else 4e-3
    for name, one, other, right in zip("qkv", found[:3], plain[:3], exact[:3], strict=True):
        error, allowed = (float((x - right).abs().max()) for x in (one, other))
        assert error <= 2 * allowed, f"{name}: {error} > 2 * {allowed}"  # NaN fails too
        assert float((one - right).norm() / right.norm()) < bound, name
    for one, right in zip(found[3:], exact[3:], strict=True):
        assert float(((one - right) / right).abs().max()) < bound, f"sinks: {one} and not {right}"


@dataclass(frozen=True)
class Case(forward.Case):
    """Gradients of the last `queries` of `keys` tokens."""

    def draw(self) -> tuple[list[Tensor], Tensor, Plan]:
        """Inputs, the gradient of the output, and the plan."""
        inputs = list(forward._tensors(self.batch, *self.heads, self.queries, self.keys, self.head_dim, self.dtype))
        if self.sinks:
            inputs.append(torch.linspace(-1.0, 4.0, self.heads[0], device=DEVICE))
        padding = Padding(None, self.keys - self.queries, self.queries, self.batch)
        plan = forward._plan(self.method, self.params, self.window, self.head_dim, padding)
        generator = torch.Generator().manual_seed(self.queries)
        d_out = torch.randn(inputs[0].shape, generator=generator).to(DEVICE, self.dtype)
        if self.sinks:
            # A sink's gradient sums d_out * out over all queries. For random d_out the sum is near 0 beside its terms,
            # and the roundings of rotated queries and keys, of plain attention too, are as large; for this it is not.
            softmax: dict[str, Any] = {"scaling": self.head_dim**-0.5, "softcap": self.softcap}
            d_out += api.attend(*inputs[:3], plan, sinks=inputs[3], impl="reference", **softmax)[0].sign()
        return inputs, d_out, plan

    def run(self, layer: int = 2) -> None:
        inputs, d_out, plan = self.draw()
        _check(inputs, d_out, plan, scaling=self.head_dim**-0.5, softcap=self.softcap, layer=layer)


SMALL = [
    Case("chunk-free", "dpi", 177, 150, 64, (3, 1), CHUNK_FREE, 48),
    Case("chunks", "dpi", 131, 131, 80, (2, 2), {"chunk_coe": 50, "local_window": 16}, 48),
    Case("fractional", "dpi", 171, 70, 64, (3, 1), {"chunk_coe": 60, "local_window": 16, "appro_attn": False}),
    Case("ChunkLlama", "repro_chunkllama", 219, 130, 128, (2, 1)),
    Case("SelfExtend", "repro_se", 233, 71, 96, (2, 1), {"group_size": 7, "window_size": 40}),
    Case("whole tiles behind a boundary", "repro_se", 390, 140, 64, (1, 1), {"group_size": 7, "window_size": 200}, 256),
    Case("few queries", "dpi", 331, 5, 64, (6, 2), CHUNK_FREE),
    Case("a step", "dpi", 331, 1, 64, (4, 2), CHUNK_FREE, batch=2),
    Case("YaRN, heads of 256", "repro_yarn", 100, 100, 256, (1, 1), {"factor": 4.0}),
    Case("soft cap", "dpi", 217, 67, 256, (2, 1), CHUNK_FREE, softcap=1.5),
    Case("sinks", "dpi", 187, 63, 64, (6, 2), CHUNK_FREE, sinks=True),
    Case("soft cap and sinks", "repro_chunkllama", 151, 97, 64, (2, 1), softcap=0.7, sinks=True),
    Case("a gap", "streaming_llm", 390, 70, 64, (1, 1), {"sinks": 4, "window_size": 33}),
    Case("a gap after all queries", "streaming_llm", 390, 9, 64, (2, 1), {"sinks": 4, "window_size": 33}),
    Case("frequencies of their own", "dpe", 233, 71, 96, (2, 1), {"scales": [2, 8, 4, 3], "window_size": 20}),
    Case("all at one distance, log n", "rerope", 210, 70, 64, (2, 1), {"window_size": 20}),
    Case("log n", "dpi", 190, 190, 64, (1, 1), {**CHUNK_FREE, "temperature": "logn"}, 32),
    Case("four bands", "multi_scale", 231, 69, 64, (2, 1), {"edges": [17, 40, 90], "scales": [2, 3.3, 7]}),
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradients_are_those_of_the_definition(case: Case) -> None:
    case.run()


def test_tables_beyond_the_budget_go_in_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.DPI.attention.kernels.tiles.KEY_BYTES", 1)
    case = Case("many launches", "dpi", 150, 150, 64, (2, 1), CHUNK_FREE, 32)
    case.run()
    inputs, d_out, plan = case.draw()
    _gradients("triton", inputs, d_out, plan, scaling=0.1)
    (tiles,) = plan.rows[0].prepared_backward.values()
    assert len(tiles) > 1


def test_a_table_is_not_read_behind_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a launch's first table, which may be short, keys that no query sees have no row."""
    of_keys = KeyTable.of_keys

    def poisoned(table: KeyTable, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        found = []
        for rows in of_keys(table, length, device):
            longer = torch.full((2048, rows.shape[-1]), float("nan"), device=device)
            longer[:length] = rows
            found.append(longer[:length])
        return found[0], found[1]

    monkeypatch.setattr(KeyTable, "of_keys", poisoned)
    monkeypatch.setattr("models.DPI.attention.kernels.tiles.KEY_BYTES", 1)
    Case("short tables", "dpi", 300, 300, 64, (2, 1), CHUNK_FREE, 32).run()


def test_rows_of_different_padding() -> None:
    """A padded batch has the gradients of its rows alone, and none in the padding."""
    n, spans = 131, [(0, 131), (40, 131), (0, 97), (40, 131)]
    mask = torch.zeros(len(spans), n, dtype=torch.long)
    for row, (first, last) in enumerate(spans):
        mask[row, first:last] = 1
    plan = forward._plan("dpi", CHUNK_FREE, 48, 64, Padding.read(mask, len(spans), 0, n))
    inputs, d_out, _ = Case("padded", "dpi", n, n, 64, (2, 1), CHUNK_FREE, batch=len(spans)).draw()
    found = _gradients("triton", inputs, d_out, plan, scaling=0.125)
    for row, (first, last) in enumerate(spans):
        alone = [x[row : row + 1, :, first:last] for x in inputs]
        one = forward._plan("dpi", CHUNK_FREE, 48, 64, Padding(None, 0, last - first, 1))
        expected = _gradients(
            "reference", [x.double() for x in alone], d_out[row : row + 1, :, first:last], one, scaling=0.125
        )
        for x, right in zip(found, expected, strict=True):
            assert float((x[row : row + 1, :, first:last] - right).norm() / right.norm()) < 4e-3
            assert not x[row, :, :first].any()
            assert not x[row, :, last:].any()


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (3,)], ids=str)
def test_any_of_the_inputs_may_require_gradients(wanted: tuple[int, ...]) -> None:
    inputs, d_out, plan = Case("some", "dpi", 90, 90, 64, (2, 1), CHUNK_FREE, 48, sinks=True).draw()
    every = _gradients("triton", inputs, d_out, plan, scaling=0.1)
    q, k, v, sinks = given = [x.detach().requires_grad_(number in wanted) for number, x in enumerate(inputs)]
    out, _ = api.attend(q, k, v, plan, scaling=0.1, sinks=sinks, impl="triton")
    found = torch.autograd.grad(out, [given[number] for number in wanted], d_out)
    for number, one in zip(wanted, found, strict=True):
        assert torch.equal(one.double(), every[number])


def test_runs_repeat_to_the_bit_and_output_is_that_without_gradients() -> None:
    inputs, d_out, plan = Case("twice", "dpi", 90, 90, 64, (4, 1), CHUNK_FREE, 48).draw()
    first, second = (_gradients("triton", inputs, d_out, plan, scaling=0.1) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    q, k, v = inputs
    with_gradients = fused.attend(q.clone().requires_grad_(), k, v, plan.rows[0], scaling=0.1)
    assert with_gradients.requires_grad
    assert torch.equal(with_gradients, fused.attend(q, k, v, plan.rows[0], scaling=0.1))


def test_checkpointing_and_a_pass_in_inference_mode_before() -> None:
    """Two forward passes before a backward pass, over a plan that inference prepared."""
    inputs, d_out, plan = Case("again", "dpi", 90, 90, 64, (2, 1), CHUNK_FREE, 48).draw()
    with torch.inference_mode():
        api.attend(*inputs, plan, scaling=0.1, impl="triton")
    expected = _gradients("triton", inputs, d_out, plan, scaling=0.1)
    given = [x.detach().requires_grad_() for x in inputs]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return api.attend(q, k, v, plan, scaling=0.1, impl="triton")[0]

    found = torch.autograd.grad(checkpoint(attend, *given, use_reentrant=False), given, d_out)
    assert all(torch.equal(one.double(), other) for one, other in zip(found, expected, strict=True))


def test_a_gradient_of_any_layout_is_read_right() -> None:
    """A sum's gradient is one number with strides of 0; others come transposed."""
    inputs, d_out, plan = Case("layouts", "dpi", 90, 90, 64, (2, 1), CHUNK_FREE, 48).draw()
    for strange in (d_out.new_full((), 0.5).expand_as(d_out), d_out.transpose(2, 3).contiguous().transpose(2, 3)):
        found = _gradients("triton", inputs, strange, plan, scaling=0.1)
        expected = _gradients("triton", inputs, strange.contiguous(), plan, scaling=0.1)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_only_the_inputs_the_output_and_its_log_sum_exps_are_kept() -> None:
    inputs, _, plan = Case("memory", "dpi", 90, 90, 64, (2, 1), CHUNK_FREE, 48).draw()
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x.numel()
        return x

    q, k, v = (x.requires_grad_() for x in inputs)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        api.attend(q, k, v, plan, scaling=0.1, impl="triton")
    assert sum(kept.values()) == 2 * q.numel() + k.numel() + v.numel() + q[..., 0].numel()


def test_what_has_no_backward_pass_is_refused_by_name() -> None:
    inputs, _, _ = Case("refused", "dpi", 90, 90, 64, (2, 1), CHUNK_FREE, 48).draw()
    q, k, v = (x.requires_grad_() for x in inputs)
    noisy = forward._plan("dpi", NOISE, 48, 64, Padding(None, 0, 90, 1))
    assert api.choose("triton", q, noisy) == "triton"
    assert api.choose("auto", q, noisy, need_gradients=True) == "sdpa"
    with pytest.raises(ValueError, match="its backward pass draws no noise, and a tensor requires gradients"):
        api.attend(q, k, v, noisy, scaling=0.1, impl="triton")
    with pytest.raises(ValueError, match="noise has no backward pass here"):
        fused.attend(q, k, v, noisy.rows[0], scaling=0.1, noise=noisy.noise)
    plan = forward._plan("dpi", CHUNK_FREE, 48, 64, Padding(None, 0, 90, 1))
    assert api.choose("auto", q, plan, need_gradients=True) == "triton"
    assert triton_gradients.obstacle(q[..., :48], plan) == (
        "its backward pass takes head_dim 64, 80, 96, 128, 256, and it is 48"
    )
    partial = forward._plan("dpi", CHUNK_FREE, 48, 32, Padding(None, 0, 90, 1))
    assert triton_gradients.obstacle(q, partial) == "its backward pass needs all components of a head to be rotary"


def test_log_sum_exps_are_given_with_gradients_too() -> None:
    inputs, _, plan = Case("lse", "dpi", 90, 90, 64, (2, 1), CHUNK_FREE, 48).draw()
    q, k, v = inputs
    lse, expected = (torch.full((1, 2, 90), float("nan"), device=DEVICE) for _ in range(2))
    fused.attend(q, k, v, plan.rows[0], scaling=0.1, lse=expected)
    fused.attend(q.clone().requires_grad_(), k, v, plan.rows[0], scaling=0.1, lse=lse)
    assert torch.equal(lse, expected)


GRID = [
    Case("chunk-free", "dpi", 1311, 1311, params=CHUNK_FREE),
    Case("chunks", "dpi", 2048, 777, params={"chunk_coe": 300, "local_window": 100}),
    Case("SelfExtend", "repro_se", 1777, 1301, params={"group_size": 9, "window_size": 200}),
    Case("ChunkLlama", "repro_chunkllama", 2001, 999),
    Case("four bands", "multi_scale", 1500, 1500, params={"edges": [100, 400, 900], "scales": [2, 3.3, 7]}),
    Case("original", "repro_original", 129, 65),
    Case("few queries", "dpi", 2311, 3, params=CHUNK_FREE),
    Case("a step", "dpi", 2311, 1, params=CHUNK_FREE),
    Case("soft cap", "dpi", 1311, 1011, params=CHUNK_FREE, softcap=1.5),
    Case("sinks", "dpi", 1311, 1011, params=CHUNK_FREE, sinks=True),
    Case("soft cap and sinks", "repro_chunkllama", 1701, 1701, softcap=1.0, sinks=True),
    Case("a gap", "streaming_llm", 1700, 1700, params={"sinks": 4, "window_size": 333}),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", triton_gradients.HEAD_DIMS)
@pytest.mark.parametrize("number", range(len(GRID)))
def test_grid(number: int, head_dim: int, dtype: torch.dtype) -> None:
    heads = [(4, 4), (8, 2), (7, 1)][(number + triton_gradients.HEAD_DIMS.index(head_dim)) % 3]
    replace(GRID[number], window=512, head_dim=head_dim, heads=heads, dtype=dtype, batch=2).run()
