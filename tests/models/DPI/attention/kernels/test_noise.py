"""The kernels' noise against `attention.noise`."""

import torch
import triton
import triton.language as tl

from models.DPI.attention import noise as noise_module
from models.DPI.attention.kernels import noise
from models.DPI.attention.noise import Noise

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@triton.jit
def _mix(x, SIZE: tl.constexpr):
    at = x + tl.arange(0, SIZE)
    tl.store(at, noise.mix(tl.load(at).to(tl.uint32, bitcast=True)).to(tl.int32, bitcast=True))


def test_mix_is_the_same_on_the_device() -> None:
    x = torch.randint(1 << 32, (1024,), generator=torch.Generator().manual_seed(0))
    found = (x - (x >> 31 << 32)).to(torch.int32).to(DEVICE)
    _mix[(1,)](found, SIZE=1024)
    assert torch.equal(found.cpu().long() & 0xFFFFFFFF, noise_module.mix(x))


def test_the_pool_goes_on_with_its_beginning() -> None:
    values, keys = noise.noise_tensors(Noise("gaussian", scale_std=True, seed=9), 3, 5, DEVICE)
    assert values is not None
    assert keys is not None
    pool = noise_module.pool("gaussian", DEVICE)
    assert torch.equal(values, torch.cat((pool, pool[:256])))
    assert torch.equal(keys.cpu().long() & 0xFFFFFFFF, noise_module.head_keys(9, 3, 5))
    assert noise.noise_tensors(None, 3, 5, DEVICE) == (None, None)


def test_gates_close_multiples_of_the_period() -> None:
    periods: list[int | None] = [None, 0, 2, 3, 63, 64, 100]
    for period, (number, pattern) in zip(periods, noise.gates_of(periods, DEVICE).tolist(), strict=True):
        closed = [(pattern >> key) & 1 == 1 for key in range(64)]
        assert closed == [period is None or (period > 0 and key % period == 0) for key in range(64)]
        assert number == (period or 1)
