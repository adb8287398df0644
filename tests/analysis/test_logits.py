"""Logits over distance: equal to rotating both, sampled from the right heads, with outliers measured by hand."""

import math
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from analysis.logits import Pairs, logit_curves, overshoot, sample_pairs
from models.DPI.attention.tables import Frequencies, rotate
from models.DPI.methods import build_method
from models.DPI.patches.Llama import install, observe


def test_a_curve_is_what_rotating_both_gives() -> None:
    q, k = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    frequencies = Frequencies(torch.tensor([1.0, 0.3, 0.05, 0.001]))
    distances = torch.tensor([0.0, 1.0, 2.5, 40.0])
    found = logit_curves(Pairs(q, k, torch.zeros(5), 0.25), distances, frequencies.inv_freq)
    key_at = torch.full((5,), 11.0)
    rotated_k = rotate(k, *frequencies.tables(key_at, k.device))
    for nth, distance in enumerate(distances.tolist()):
        rotated_q = rotate(q, *frequencies.tables(key_at + distance, q.device))
        torch.testing.assert_close(found[:, nth], 0.25 * (rotated_q * rotated_k).sum(-1), atol=1e-5, rtol=0)


def test_pairs_are_a_query_and_an_earlier_key_of_its_own_head(make_model: Callable[..., PreTrainedModel]) -> None:
    model = install(make_model(), build_method("repro_original", {}))
    ids = 3 + torch.randperm(98, generator=torch.Generator().manual_seed(2))[None, :29]
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    with observe(model, lambda layer, q, k, plan, scaling: seen.update({layer: (q[0], k[0])})), torch.no_grad():
        model.base_model(ids)
    pairs = sample_pairs(model, ids, per_layer=11)
    assert pairs.layer.tolist() == [0] * 11 + [1] * 11
    assert pairs.scaling == 12**-0.5
    heads = set()
    for query, key, layer in zip(pairs.query, pairs.key, pairs.layer.tolist(), strict=True):
        queries, keys = (x.double() for x in seen[layer])
        ((head, i),) = (queries == query).all(-1).nonzero().tolist()
        ((shared, j),) = (keys == key).all(-1).nonzero().tolist()
        assert shared == head // 2
        assert j < i
        heads.add(head)
    assert len(heads) > 2


def test_an_overshoot_by_hand() -> None:
    """cos d between 6 and 7 is largest at 2π: there rotation lies above both neighbours, interpolation between them."""
    one = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    pairs = Pairs(one, one, torch.zeros(1), 1.0)
    found = overshoot(pairs, torch.tensor([6, 1]), 2 * math.pi - 6, torch.ones(1))
    assert abs(found.fractional[0, 0].item() - 1) < 1e-6
    assert abs(found.beyond[0, 0].item() - (1 - math.cos(6))) < 1e-6
    assert found.beyond[0, 1] == 0
    mixed = (7 - 2 * math.pi) * math.cos(6) + (2 * math.pi - 6) * math.cos(7)
    assert abs(found.interpolated[0, 0].item() - mixed) < 1e-6
