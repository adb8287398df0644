"""The blended key is the paper's two logits; what it damps is what the algebra says."""

import torch

from analysis.blend import blended_logits, damping, interpolated_logits
from models.DPI.attention.tables import Frequencies

FREQUENCIES = Frequencies(torch.tensor([1.0, 0.31, 0.07, 0.002]))


def test_one_blended_key_is_two_logits() -> None:
    draw = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 97, 8, generator=draw, dtype=torch.float64)
    key = 40 * torch.rand(97, generator=draw, dtype=torch.float64)
    query = key.ceil() + torch.randint(0, 9, (97,), generator=draw)
    found = blended_logits(q, k, query, key, FREQUENCIES)
    torch.testing.assert_close(found, interpolated_logits(q, k, query, key, FREQUENCIES), atol=2e-6, rtol=0)


def test_two_logits_by_hand() -> None:
    """One frequency, q = k = (1, 0): the logit at distance d is cos(dθ)."""
    one = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    only = Frequencies(torch.tensor([0.5]))
    found = interpolated_logits(one, one, torch.tensor([7.0]), torch.tensor([2.25]), only)
    expected = 0.25 * torch.tensor(4 * 0.5).cos() + 0.75 * torch.tensor(5 * 0.5).cos()
    assert abs(found.item() - expected.item()) < 1e-7


def test_damping_is_the_blend_over_the_rotation() -> None:
    weight, theta = torch.tensor([0.0, 0.2, 0.5, 1.0]), FREQUENCIES.inv_freq
    found = damping(weight, theta)
    upper, w = 9.0, weight[:, None].double()
    angle = upper * theta.double()
    blend = (1 - w) * torch.exp(1j * angle) + w * torch.exp(1j * (angle - theta))
    fractional = torch.exp(1j * (angle - w * theta))
    torch.testing.assert_close(found, blend / fractional, atol=1e-7, rtol=0)
    torch.testing.assert_close(found[2].abs(), (theta / 2).cos().double(), atol=1e-7, rtol=0)
    assert torch.allclose(found[0].abs(), torch.ones(4).double())
    assert torch.allclose(found[3].abs(), torch.ones(4).double())
