"""Gradients of queries, keys and values against autograd through the oracle, a dense computation in fp64."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.DPI.attention import api, sdpa
from models.DPI.attention import noise as noise_module
from models.DPI.attention.backends import BACKENDS
from models.DPI.attention.bands import Plan
from models.DPI.attention.noise import draw
from models.DPI.methods import METHODS, Method, build_method
from models.DPI.planning import Padding, make_plan
from tests.models.DPI import oracle
from tests.models.DPI.helpers import PARAMS

WINDOW, LENGTH, SCALING, SEED, LAYER = 24, 61, 0.4, 3, 2
ROPE = oracle.rope(WINDOW, 16)
CHUNK_FREE: dict[str, Any] = {"chunk_coe": 1, "local_window": 7}
CHUNKS: dict[str, Any] = {"chunk_coe": 11, "local_window": 5}
NOISE: dict[str, Any] = {**CHUNKS, "noise_type": "gaussian", "std_base": 2.0}


@dataclass(frozen=True)
class Case:
    """A method and its parameters, and the last `length - past` of `length` tokens."""

    name: str
    method: str
    params: dict[str, Any] = field(default_factory=dict)
    past: int = 0
    length: int = LENGTH
    heads: tuple[int, int] = (4, 2)
    softcap: float | None = None
    sinks: bool = False

    def __str__(self) -> str:
        return self.name

    def build(self) -> Method:
        return build_method(self.method, self.params, WINDOW)


CASES = [
    Case("chunk-free", "dpi", CHUNK_FREE),
    Case("chunks", "dpi", CHUNKS),
    Case("chunks, one key head", "dpi", CHUNKS, heads=(5, 1)),
    Case("fractional", "dpi", {**CHUNKS, "appro_attn": False}),
    Case("within the window", "dpi", CHUNK_FREE, length=WINDOW),
    Case("a piece", "dpi", CHUNK_FREE, past=40),
    Case("a step", "dpi", CHUNK_FREE, past=LENGTH - 1),
    Case("SelfExtend", "repro_se", {"group_size": 4, "window_size": 9}),
    Case("SelfExtend, a step", "repro_se", {"group_size": 4, "window_size": 9}, past=LENGTH - 1),
    Case("ChunkLlama", "repro_chunkllama", {"local_window": 5}, heads=(3, 3)),
    Case("NTK", "repro_ntk", {"factor": 4.0}),
    Case("Dyn-NTK", "repro_dynamic_ntk", {"factor": 4.0}),
    Case("YaRN", "repro_yarn", {"factor": 4.0}),
    Case("original", "repro_original"),
    *(Case(name, name, PARAMS[name]) for name, method in METHODS.items() if not method.in_paper),
    *(Case(f"{name}, a step", name, PARAMS[name], past=LENGTH - 1) for name in ("dpe", "streaming_llm", "rerope")),
    Case("log n", "dpi", {**CHUNK_FREE, "temperature": "logn"}),
    Case("noise", "dpi", NOISE),
    Case("noise, a step", "dpi", NOISE, past=LENGTH - 1),
    Case("noise and the row's mean", "dpi", {**NOISE, "scale_mean": 1, "addon_relcoef": 0}),
    Case("soft cap", "dpi", CHUNK_FREE, softcap=0.7),
    Case("soft cap, chunks, a piece", "dpi", CHUNKS, past=30, softcap=0.7),
    Case("soft cap, a step", "repro_se", {"group_size": 4, "window_size": 9}, past=LENGTH - 1, softcap=0.7),
    Case("soft cap and noise", "dpi", NOISE, softcap=0.7),
    Case("soft cap and the row's mean", "dpi", {**NOISE, "scale_mean": 1}, softcap=0.7),
    Case("sinks", "dpi", CHUNK_FREE, sinks=True),
    Case("sinks, within the window", "dpi", CHUNK_FREE, length=WINDOW, sinks=True),
    Case("sinks, three bands", "repro_chunkllama", {"local_window": 5}, heads=(6, 3), sinks=True),
    Case("sinks, a step", "repro_yarn", {"factor": 4.0}, past=LENGTH - 1, sinks=True),
    Case("sinks and noise", "dpi", NOISE, sinks=True),
    Case("soft cap and sinks", "repro_ntk", {"factor": 4.0}, softcap=0.7, sinks=True),
    Case("uniform noise and the row's largest", "dpi", {**NOISE, "noise_type": "uniform", "scale_max": 1}),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of queries, and of keys in the backward pass."""
    monkeypatch.setitem(sdpa._BLOCK, "cpu", 13)
    monkeypatch.setattr(sdpa, "_MAX_LOGITS", 13 * 8 * 17)


def _tensors(batch: int, heads: tuple[int, int], past: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and the gradient of the output."""
    generator = torch.Generator().manual_seed(length + past)
    shapes = (heads[0], length - past), (heads[1], length), (heads[1], length), (heads[0], length - past)
    return [torch.randn(batch, *shape, 16, generator=generator).to(dtype) for shape in shapes]


def _sinks(heads: int) -> Tensor:
    return torch.linspace(-1.0, 2.0, heads)


def _dense(
    method: Method, q: Tensor, k: Tensor, v: Tensor, softcap: float | None = None, sinks: Tensor | None = None
) -> Tensor:
    """By the oracle, from rotary positions of every pair."""
    length = k.shape[2]
    past = length - q.shape[2]
    terms = oracle.terms(method, WINDOW, past, length, ROPE.inv_freq.numel())
    inv_freq = oracle.inv_freq_of(method.segments(ROPE, past, length))
    logits = oracle.logits(q, k, inv_freq, terms, SCALING)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    noise = method.noise(SEED)
    if noise is not None:
        value = draw(noise, LAYER, q.shape[1], torch.arange(past, length), torch.arange(length)).double()
        logits = oracle.with_noise(logits, method, terms, value, WINDOW, past, length)
    return oracle.attend(logits, v, terms.seen, sinks)


def _gradients(out: Tensor, inputs: list[Tensor], d_out: Tensor) -> list[Tensor]:
    return [x.double() for x in torch.autograd.grad(out, inputs, d_out.to(out.dtype))]


def _assert_close(found: list[Tensor], expected: list[Tensor], bound: float = 1e-4) -> None:
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm() / other.norm()) <= bound  # NaN fails too


def _plan(method: Method, padding: Padding) -> Plan:
    return make_plan(method, ROPE, padding, seed=SEED)


@pytest.mark.parametrize("impl", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_the_definition(case: Case, impl: str) -> None:
    method = case.build()
    *inputs, d_out = _tensors(2, case.heads, case.past, case.length, torch.float32)
    inputs = [x.requires_grad_() for x in inputs]
    plan = _plan(method, Padding(None, case.past, case.length - case.past, 2))
    if case.sinks:
        inputs.append(_sinks(case.heads[0]).requires_grad_())
    q, k, v, *sinks = inputs
    out, _ = api.attend(
        q, k, v, plan, scaling=SCALING, softcap=case.softcap, sinks=next(iter(sinks), None), layer=LAYER, impl=impl
    )
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = _dense(method, exact[0], exact[1], exact[2], case.softcap, next(iter(exact[3:]), None))
    _assert_close([out.detach().double()], [expected.detach()])
    _assert_close(_gradients(out, inputs, d_out), _gradients(expected, exact, d_out))


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_sinks_alone_may_require_gradients(impl: str) -> None:
    method = build_method("dpi", CHUNK_FREE, WINDOW)
    q, k, v, d_out = _tensors(2, (4, 2), 0, LENGTH, torch.float64)
    sinks = _sinks(4).double().requires_grad_()
    plan = _plan(method, Padding(None, 0, LENGTH, 2))
    out, _ = api.attend(q, k, v, plan, scaling=SCALING, sinks=sinks, impl=impl)
    exact = _sinks(4).double().requires_grad_()
    _assert_close(
        _gradients(out, [sinks], d_out), _gradients(_dense(method, q, k, v, sinks=exact), [exact], d_out), 1e-6
    )


def test_every_method_is_tested() -> None:
    assert {case.method for case in CASES} == set(METHODS)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_any_of_the_inputs_may_require_gradients(wanted: tuple[int, ...]) -> None:
    method = build_method("dpi", CHUNK_FREE, WINDOW)
    *inputs, d_out = _tensors(1, (4, 2), 0, LENGTH, torch.float64)
    plan = _plan(method, Padding(None, 0, LENGTH, 1))

    def of(impl: str) -> list[Tensor]:
        tensors = [x.clone().requires_grad_(number in wanted) for number, x in enumerate(inputs)]
        q, k, v = tensors
        out, _ = api.attend(q, k, v, plan, scaling=SCALING, impl=impl)
        return _gradients(out, [tensors[number] for number in wanted], d_out)

    _assert_close(of("sdpa"), of("reference"), 1e-10)


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_rows_of_different_padding(impl: str) -> None:
    """A padded batch has the gradients of its rows alone, and none in the padding."""
    method = build_method("dpi", CHUNK_FREE, WINDOW)
    spans = [(0, LENGTH), (9, LENGTH), (0, 50), (9, LENGTH), (44, LENGTH)]
    mask = torch.zeros(len(spans), LENGTH, dtype=torch.long)
    for row, (first, last) in enumerate(spans):
        mask[row, first:last] = 1
    *inputs, d_out = _tensors(len(spans), (4, 2), 0, LENGTH, torch.float32)
    inputs = [x.requires_grad_() for x in inputs]
    plan = _plan(method, Padding.read(mask, len(spans), 0, LENGTH))
    out, _ = api.attend(inputs[0], inputs[1], inputs[2], plan, scaling=SCALING, impl=impl)
    found = _gradients(out, inputs, d_out)
    for row, (first, last) in enumerate(spans):
        alone = [x[row : row + 1, :, first:last].detach().double().requires_grad_() for x in inputs]
        expected = _dense(method, alone[0], alone[1], alone[2])
        _assert_close(
            [x[row : row + 1, :, first:last] for x in found],
            _gradients(expected, alone, d_out[row : row + 1, :, first:last]),
        )
        for x in found:
            assert not x[row, :, :first].any()
            assert not x[row, :, last:].any()


def test_low_precision_is_no_worse_than_twice_plain_attention() -> None:
    """The rule of flash-attention's tests, for gradients."""
    method = build_method("dpi", CHUNK_FREE, WINDOW)
    *inputs, d_out = _tensors(2, (4, 2), 0, LENGTH, torch.bfloat16)
    plan = _plan(method, Padding(None, 0, LENGTH, 2))

    def of(impl: str, dtype: torch.dtype) -> list[Tensor]:
        q, k, v = tensors = [x.to(dtype).requires_grad_() for x in inputs]
        out, _ = api.attend(q, k, v, plan, scaling=SCALING, impl=impl)
        return _gradients(out, tensors, d_out)

    exact, plain, found = of("reference", torch.float64), of("reference", torch.bfloat16), of("sdpa", torch.bfloat16)
    for one, other, right in zip(found, plain, exact, strict=True):
        assert float((one - right).abs().max()) <= 2 * float((other - right).abs().max())


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
@pytest.mark.parametrize(
    "params", [CHUNK_FREE, {**NOISE, "scale_mean": 1}, {**NOISE, "noise_type": "uniform"}], ids=str
)
def test_gradients_after_a_pass_in_inference_mode(impl: str, params: dict[str, Any]) -> None:
    """The tables and deviates that such a pass leaves behind may be read again."""
    noise_module.pool_and_margin.cache_clear()
    method, rope = build_method("dpi", params, WINDOW), oracle.rope(WINDOW, 16)
    *inputs, d_out = _tensors(1, (4, 2), 0, LENGTH, torch.float32)
    q, k, v = inputs
    with torch.inference_mode():
        first = make_plan(method, rope, Padding(None, 0, LENGTH, 1), seed=SEED)
        api.attend(q, k, v, first, scaling=SCALING, layer=LAYER, impl=impl)
    plan = make_plan(method, rope, Padding(None, 0, LENGTH, 1), seed=SEED)
    inputs = [x.requires_grad_() for x in inputs]
    out, _ = api.attend(q, k, v, plan, scaling=SCALING, layer=LAYER, impl=impl)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = _gradients(_dense(method, exact[0], exact[1], exact[2]), exact, d_out)
    _assert_close(_gradients(out, inputs, d_out), expected)


def test_no_matrix_of_all_logits_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the backward pass keeps grows with the tokens, not with their square."""
    monkeypatch.setitem(sdpa._BLOCK, "cpu", 64)
    monkeypatch.setattr(sdpa, "_MAX_LOGITS", 1 << 12)
    method = build_method("dpi", CHUNK_FREE, WINDOW)
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x.numel()
        return x

    length = 400
    q, k, v, _ = (x.requires_grad_() for x in _tensors(1, (4, 2), 0, length, torch.float32))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        api.attend(q, k, v, _plan(method, Padding(None, 0, length, 1)), scaling=SCALING, impl="sdpa")
    assert sum(kept.values()) == 2 * q.numel() + k.numel() + v.numel() + q[..., 0].numel()


def test_an_implementation_without_a_backward_pass_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without = replace(BACKENDS["triton"], obstacle=lambda q, plan: None, has_backward=False)
    monkeypatch.setitem(BACKENDS, "triton", without)
    method = build_method("dpi", CHUNK_FREE, WINDOW)
    q, k, v, _ = _tensors(1, (4, 2), 0, LENGTH, torch.float32)
    plan = _plan(method, Padding(None, 0, LENGTH, 1))
    assert api.choose("auto", q, plan) == "triton"
    assert api.choose("auto", q, plan, need_gradients=True) == "sdpa"
    for number in range(3):
        one, two, three = (x.clone().requires_grad_(number == at) for at, x in enumerate((q, k, v)))
        with pytest.raises(ValueError, match="it has no backward pass, and a tensor requires gradients"):
            api.attend(one, two, three, plan, scaling=SCALING, impl="triton")
        out, _ = api.attend(one, two, three, plan, scaling=SCALING)
        assert out.requires_grad
