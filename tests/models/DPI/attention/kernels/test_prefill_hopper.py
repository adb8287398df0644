"""Prefill in groups of warps against the prefill of one group, which `test_triton.py` holds to the definition."""

from typing import Any

import pytest
import torch

from models.DPI.attention.kernels import prefill
from models.DPI.methods import build_method
from models.DPI.planning import Padding, make_plan
from tests.models.DPI import oracle

WINDOW = 256
METHODS: dict[str, dict[str, Any]] = {
    "dpi": {"chunk_coe": 1, "local_window": 64},
    "repro_se": {"group_size": 8, "window_size": 64},
    "repro_chunkllama": {},
    "repro_original": {},
    "streaming_llm": {"window_size": 40},
    "multi_scale": {"edges": [17, 40, 90], "scales": [2, 3.3, 7]},
}


@pytest.fixture
def hopper() -> None:
    """Needs a card of the one kind that the kernel is for."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("for Hopper alone")


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(1111, 1111), (300, 1111), (129, 700), (65, 65)])
@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, method: str, head_dim: int, queries: int, keys: int, with_sinks: bool
) -> None:
    """Also where a band has no tile that is seen whole, or none at all."""
    generator = torch.Generator("cuda").manual_seed(keys + head_dim)
    dtype = torch.float16 if head_dim == 80 else torch.bfloat16

    def draw(heads: int, length: int) -> torch.Tensor:
        x = torch.randn(2, length + 5, heads, head_dim, generator=generator, device="cuda", dtype=dtype)
        x[:, length:] = float("nan")
        return x.transpose(1, 2)[:, :, :length]

    q, k, v = draw(4, queries), draw(2, keys), draw(2, keys)
    sinks = torch.randn(4, generator=generator, device="cuda") if with_sinks else None
    plan = make_plan(
        build_method(method, METHODS[method], 2048 if method == "repro_original" else WINDOW),
        oracle.rope(WINDOW, head_dim),
        Padding(None, keys - queries, queries, 2),
        seed=0,
    )

    def attend() -> tuple[torch.Tensor, torch.Tensor]:
        lse = torch.full((2, 4, queries), float("nan"), device="cuda")
        out = prefill.attend(q, k, v, plan.rows[0], scaling=head_dim**-0.5, sinks=sinks, lse=lse)
        return out, lse

    taken = []
    is_for_hopper = prefill._is_for_hopper
    monkeypatch.setattr(prefill, "_is_for_hopper", lambda *args: taken.append(is_for_hopper(*args)) or taken[-1])
    found = attend()
    assert taken == [True]
    monkeypatch.setattr(prefill, "_is_for_hopper", lambda *args: False)
    for one, same in zip(found, attend(), strict=True):
        assert not one.isnan().any()
        assert torch.equal(one, same)


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(("queries", "keys"), [(1111, 1111), (300, 1111), (129, 700)])
@pytest.mark.parametrize("head_dim", [64, 112, 128])
@pytest.mark.parametrize(
    "params",
    [
        {"chunk_coe": 200, "noise_type": "gaussian"},
        {"chunk_coe": 1, "noise_type": "gaussian", "scale_std": 0},
        {"chunk_coe": 77, "noise_type": "uniform", "scale_max": 0},
    ],
)
def test_noise(monkeypatch: pytest.MonkeyPatch, params: dict[str, Any], head_dim: int, queries: int, keys: int) -> None:
    """The same deviates on the same logits, of every head; in chunks noise is on some keys of the far band alone."""
    generator = torch.Generator("cuda").manual_seed(keys + head_dim)
    q, k, v = (
        torch.randn(2, heads, length, head_dim, generator=generator, device="cuda", dtype=torch.float16)
        for heads, length in ((4, queries), (2, keys), (2, keys))
    )
    plan = make_plan(
        build_method("dpi", {"local_window": 64, **params}, WINDOW),
        oracle.rope(WINDOW, head_dim),
        Padding(None, keys - queries, queries, 2),
        seed=3,
    )
    assert plan.noise is not None
    assert prefill._is_for_hopper(q, plan.rows[0], None), "else the kernel is compared with itself"

    def attend(noisy: bool) -> tuple[torch.Tensor, torch.Tensor]:
        lse = torch.full((2, 4, queries), float("nan"), device="cuda")
        noise = plan.noise if noisy else None
        out = prefill.attend(q, k, v, plan.rows[0], scaling=head_dim**-0.5, noise=noise, layer=2, lse=lse)
        return out, lse

    found, without = attend(True), attend(False)
    monkeypatch.setattr(prefill, "_is_for_hopper", lambda *args: False)
    for one, same, quiet, bound in zip(found, attend(True), without, (2**-9, 1e-5), strict=True):
        torch.testing.assert_close(one, same, rtol=bound, atol=bound)
        assert not torch.allclose(one, quiet, rtol=bound, atol=bound)
