"""The choice of an implementation, and rows of a batch that differ in padding."""

import dataclasses
import logging

import pytest
import torch
from torch import Tensor

from models.DPI.attention import api, reference
from models.DPI.attention.bands import Plan
from models.DPI.methods import build_method
from models.DPI.planning import Padding, make_plan
from tests.models.DPI import oracle

METHOD = build_method("dpi", {"local_window": 5, "chunk_coe": 7, "noise_type": "gaussian"}, 24)
ROPE = oracle.rope(24, 16)


def _plan(mask: Tensor | None, batch: int, past: int, new: int) -> Plan:
    return make_plan(METHOD, ROPE, Padding.read(mask, batch, past, new), seed=3)


def _tensors(batch: int, past: int, new: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (4, new, 16), (2, past + new, 16), (2, past + new, 16)
    q, k, v = (torch.randn(batch, *shape, generator=generator) for shape in shapes)
    return q, k, v


def test_an_unknown_implementation_is_refused() -> None:
    q, k, v = _tensors(1, 0, 9)
    with pytest.raises(ValueError, match="attn_impl is 'fast'; it must be one of auto, triton, flash, sdpa, reference"):
        api.attend(q, k, v, _plan(None, 1, 0, 9), scaling=0.25, impl="fast")


@pytest.mark.parametrize("impl", ["triton", "flash"])
def test_one_asked_for_by_name_never_gives_way(impl: str) -> None:
    q, k, v = _tensors(1, 0, 9)
    with pytest.raises(ValueError, match=rf"attn_impl = '{impl}' cannot run here: .+") as caught:
        api.attend(q, k, v, _plan(None, 1, 0, 9), scaling=0.25, impl=impl)
    if impl == "triton":
        assert "cpu" in str(caught.value)


@pytest.mark.parametrize("impl", ["sdpa", "auto", "reference"])
def test_only_the_reference_has_weights(impl: str) -> None:
    q, k, v = _tensors(1, 0, 9)
    plan = _plan(None, 1, 0, 9)
    if impl == "sdpa":
        with pytest.raises(ValueError, match="does not form the attention weights; only 'reference' does"):
            api.attend(q, k, v, plan, scaling=0.25, impl=impl, need_weights=True)
        return
    _, weights = api.attend(q, k, v, plan, scaling=0.25, impl=impl, need_weights=True)
    assert weights is not None
    assert weights.shape == (1, 4, 9, 9)


def test_nobody_gets_weights_who_does_not_ask() -> None:
    q, k, v = _tensors(1, 0, 9)
    (row,) = _plan(None, 1, 0, 9).rows
    assert reference.attend(q, k, v, row.segments, scaling=0.25)[1] is None
    assert api.attend(q, k, v, _plan(None, 1, 0, 9), scaling=0.25, impl="reference")[1] is None


@pytest.mark.parametrize(("new", "asked"), [(1, ["one"]), (2, ["rows"])])
def test_a_single_token_goes_to_the_step_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch, new: int, asked: list[str]
) -> None:
    found: list[str] = []

    def one(q: Tensor, k: Tensor, v: Tensor, plan: Plan, **options: object) -> Tensor:
        found.append("one")
        return torch.zeros_like(q)

    def rows(q: Tensor, *_: object, **options: object) -> tuple[Tensor, None]:
        found.append("rows")
        return torch.zeros_like(q), None

    monkeypatch.setitem(api.BACKENDS, "sdpa", dataclasses.replace(api.BACKENDS["sdpa"], attend=rows, attend_one=one))
    q, k, v = _tensors(1, 30, new)
    api.attend(q, k, v, _plan(None, 1, 30, new), scaling=0.25, impl="sdpa")
    assert found == asked


def test_the_choice_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_said", set())
    q, _, _ = _tensors(1, 0, 9)
    plan = _plan(None, 1, 0, 9)
    with caplog.at_level(logging.INFO, logger=api.__name__):
        assert [api.choose("auto", q, plan) for _ in range(3)] == ["sdpa"] * 3
        assert len(caplog.records) == 1
        assert "sdpa" in caplog.text
        assert "not triton: " in caplog.text
        assert api.choose("auto", q, plan, need_weights=True) == "reference"
        assert len(caplog.records) == 2


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
@pytest.mark.parametrize("past", [0, 13, 40, 52])
def test_padded_rows_are_the_rows_alone(impl: str, past: int) -> None:
    """Rows padded on the left, on the right, on both sides, not at all; beyond the window and within it."""
    n = 53
    new = n - past
    spans = [(0, n), (9, n), (44, n), (0, 30), (5, 50), (0, n), (52, n)]
    mask = torch.zeros(len(spans), n, dtype=torch.long)
    for row, (first, last) in enumerate(spans):
        mask[row, first:last] = 1
    q, k, v = _tensors(len(spans), past, new)
    out, weights = api.attend(
        q, k, v, _plan(mask, len(spans), past, new), scaling=0.25, impl=impl, need_weights=impl == "reference"
    )
    assert (weights is None) == (impl == "sdpa")
    for row, (first, last) in enumerate(spans):
        start = max(first, past)
        assert not out[row, :, : max(first - past, 0)].any()
        assert not out[row, :, max(last - past, 0) :].any()
        if start >= last:
            continue
        at, keys = slice(start - past, last - past), slice(first, last)
        segments = METHOD.segments(ROPE, start - first, last - first)
        alone, p = reference.attend(
            q[row : row + 1, :, at],
            k[row : row + 1, :, keys],
            v[row : row + 1, :, keys],
            segments,
            scaling=0.25,
            noise=METHOD.noise(3),
            need_weights=True,
        )
        torch.testing.assert_close(out[row : row + 1, :, at], alone, rtol=0, atol=2e-6)
        if weights is not None and p is not None:
            torch.testing.assert_close(weights[row : row + 1, :, at, keys], p, rtol=0, atol=2e-6)
            assert not weights[row, :, :, :first].any()
            assert not weights[row, :, :, last:].any()


def test_padding_is_never_read() -> None:
    """NaN in the padding of queries, keys and values reaches no output."""
    mask = torch.ones(2, 53, dtype=torch.long)
    mask[0, :9] = 0
    mask[1, 31:] = 0
    q, k, v = _tensors(2, 0, 53)
    plan = _plan(mask, 2, 0, 53)
    clean, _ = api.attend(q, k, v, plan, scaling=0.25, impl="sdpa")
    for x in (q, k, v):
        x.masked_fill_(~mask.bool()[:, None, :, None], float("nan"))
    found, _ = api.attend(q, k, v, plan, scaling=0.25, impl="sdpa")
    assert torch.equal(found, clean)
