"""The rotating kernel against PyTorch's arithmetic in fp64."""

import pytest
import torch

from models.DPI.attention.kernels.rotate import rotate_into
from models.DPI.attention.tables import Frequencies, rotate
from tests.models.DPI import oracle

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("first", "last"), [(0, 71), (5, 38), (70, 71)])
@pytest.mark.parametrize("heads", [1, 11])
@pytest.mark.parametrize("head_dim", [64, 80])
def test_tokens_are_rotated_in_place_and_others_left_alone(first: int, last: int, heads: int, head_dim: int) -> None:
    generator = torch.Generator().manual_seed(first + heads)
    x = torch.randn(2, 71, heads, head_dim, generator=generator).half().to(DEVICE).transpose(1, 2)
    frequencies = Frequencies(oracle.rope(64, head_dim).inv_freq)
    cos, sin = frequencies.tables(torch.arange(71).double() / 3, DEVICE, blend=True)
    out = torch.full((2, heads, 71, head_dim), 7.0, dtype=torch.float16, device=DEVICE)
    rotate_into(out, x, cos, sin, first, last, 0.5)
    expected = torch.full_like(out, 7.0).double()
    expected[:, :, first:last] = rotate(x.double(), cos.double(), sin.double())[:, :, first:last] * 0.5
    torch.testing.assert_close(out.double(), expected, rtol=2**-10, atol=1e-6)
