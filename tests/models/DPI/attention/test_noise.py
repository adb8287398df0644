"""Noise: its distribution, its independence of blocks, and the rules of which logit gets how much."""

import itertools

import pytest
import torch
from torch import Tensor

from models.DPI.attention import noise as noise_module
from models.DPI.attention.noise import POOL_SIZE, Noise, apply, draw, head_keys, mix, places, pool, slots

CPU = torch.device("cpu")
GAUSSIAN = Noise("gaussian", scale_std=True, seed=5)
UNIFORM = Noise("uniform", scale_std=True, seed=5)


def _range(first: int, last: int) -> Tensor:
    return torch.arange(first, last)


def test_pool_of_gaussians() -> None:
    values = pool("gaussian", CPU).double()
    assert values.shape == (POOL_SIZE,)
    assert abs(float(values.mean())) < 1e-4
    assert abs(float(values.std()) - 1) < 1e-4
    assert abs(float((values**3).mean())) < 1e-3
    assert abs(float((values**4).mean()) - 3) < 1e-2
    assert float(values.abs().max()) < 5
    for quantile, expected in ((0.5, 0.0), (0.8413447, 1.0), (0.9986501, 3.0), (0.0227501, -2.0)):
        assert abs(float(values.sort().values[int(quantile * POOL_SIZE)]) - expected) < 3e-3


def test_pool_of_uniforms() -> None:
    values = pool("uniform", CPU).double()
    assert float(values.min()) >= 0
    assert float(values.max()) < 1
    assert abs(float(values.mean()) - 0.5) < 1e-4
    assert abs(float(values.var()) - 1 / 12) < 1e-4


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_pool_is_in_no_order(kind: str) -> None:
    values = pool(kind, CPU).double()
    values = (values - values.mean()) / values.std()
    for lag in (1, 2, 8, 64, 1024, 4096):
        assert abs(float((values[:-lag] * values[lag:]).mean())) < 0.01


def test_mix_is_a_bijection_that_spreads_each_bit() -> None:
    x = torch.randint(1 << 32, (1 << 16,), generator=torch.Generator().manual_seed(0)).unique()
    y = mix(x)
    assert int(y.min()) >= 0
    assert int(y.max()) < 1 << 32
    assert y.unique().numel() == x.numel()
    for bit in range(0, 32, 5):
        flipped = mix(x) ^ mix(x ^ (1 << bit))
        share = torch.stack([(flipped >> out) & 1 for out in range(32)]).double().mean(1)
        assert float((share - 0.5).abs().max()) < 0.02


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_any_block_has_the_numbers_of_the_whole(kind: str) -> None:
    noise = Noise(kind, scale_std=True, seed=9)  # type: ignore[arg-type]
    whole = draw(noise, 3, 5, _range(0, 83), _range(0, 97))
    assert whole.shape == (5, 83, 97)
    for (a, b), (c, d) in [((0, 7), (0, 97)), ((13, 80), (41, 42)), ((82, 83), (7, 96))]:
        assert torch.equal(draw(noise, 3, 5, _range(a, b), _range(c, d)), whole[:, a:b, c:d])
    assert torch.equal(draw(noise, 3, 2, _range(0, 83), _range(0, 97)), whole[:2])


def test_a_logit_reads_its_place_in_its_block() -> None:
    queries, keys = torch.tensor([5, 6, 8, 1_000_003]), _range(60, 200)
    found = draw(GAUSSIAN, 0, 2, queries, keys)
    blocks = _range(1, 7)  # of 32 keys: 60 ... 199 lie in blocks 1 to 6
    place = places(head_keys(GAUSSIAN.seed, 0, 2), queries, blocks)
    values = pool("gaussian", CPU)
    for head, t, n in itertools.product(range(2), range(4), range(0, 140, 7)):
        i, j = int(queries[t]), int(keys[n])
        slot = 32 * (i % 8) + 8 * (j % 8 // 2) + 2 * (j % 32 // 8) + j % 2
        assert float(found[head, t, n]) == float(values[(int(place[head, t, j // 32 - 1]) + slot) % POOL_SIZE])
    assert torch.equal(place[:, 0], place[:, 1])  # queries 5 and 6 share their blocks, query 8 has its own
    assert not torch.equal(place[:, 0], place[:, 2])


def test_slots_of_a_block_are_all_different() -> None:
    found = slots(_range(16, 24), _range(64, 96))
    assert found.shape == (8, 32)
    assert sorted(found.flatten().tolist()) == list(range(256))
    assert torch.equal(slots(_range(0, 8), _range(0, 32)), found)


def test_seed_layer_head_and_query_all_count() -> None:
    queries, keys = _range(0, 31), _range(0, 64)
    base = draw(GAUSSIAN, 0, 4, queries, keys)
    others = [
        draw(Noise("gaussian", scale_std=True, seed=6), 0, 4, queries, keys),
        draw(Noise("gaussian", scale_std=True, seed=5 + (1 << 32)), 0, 4, queries, keys),
        draw(Noise("gaussian", scale_std=True, seed=-5), 0, 4, queries, keys),
        draw(GAUSSIAN, 1, 4, queries, keys),
        base.roll(1, dims=0),
        base.roll(1, dims=1),
    ]
    for other in others:
        assert (other == base).float().mean() < 0.02
        assert abs(float((other * base).mean())) < 0.06


def test_rows_and_heads_are_uncorrelated() -> None:
    """Over 2,048 keys, 8 heads x 24 rows correlate as independent draws do: 1/sqrt(2048), at most 5 times that."""
    values = draw(GAUSSIAN, 2, 8, _range(0, 24), _range(0, 2048)).reshape(8 * 24, 2048).double()
    correlation = torch.corrcoef(values) - torch.eye(len(values))
    assert float(correlation.abs().max()) < 5 / 2048**0.5
    assert float(correlation.std()) == pytest.approx(1 / 2048**0.5, rel=0.1)


def test_places_are_spread_and_aligned() -> None:
    found = places(head_keys(1, 2, 7), _range(0, 800), _range(0, 30))
    assert found.shape == (7, 800, 30)
    assert (found % 8 == 0).all()
    assert int(found.min()) >= 0
    assert int(found.max()) < POOL_SIZE
    eighths = torch.bincount(found[:, ::8].flatten() * 8 // POOL_SIZE, minlength=8).double() / found[:, ::8].numel()
    assert float((eighths - 1 / 8).abs().max()) < 0.01


def _logits(t: int = 23, n: int = 41) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(4)
    queries, keys = _range(n - t, n), _range(0, n)
    allowed = keys[None] <= queries[:, None]
    return torch.randn(2, 3, t, n), allowed, allowed & (keys % 3 != 0), queries, keys


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
@pytest.mark.parametrize("scale_std", [False, True])
@pytest.mark.parametrize("scale_mean", [False, True])
@pytest.mark.parametrize("scale_max", [False, True])
def test_what_a_logit_gets(kind: str, scale_std: bool, scale_mean: bool, scale_max: bool) -> None:
    """Number by number from the definition; means and largest logits over the keys that a query sees."""
    noise = Noise(kind, scale_std, scale_mean, scale_max, seed=8)  # type: ignore[arg-type]
    logits, allowed, noisy, queries, keys = _logits()
    std = torch.linspace(0.3, 0.7, len(queries))
    value = draw(noise, 6, 3, queries, keys)
    found = apply(noise, logits, allowed, noisy, std, 6, queries, keys)
    for row in range(2):
        for head in range(3):
            for t, i in enumerate(queries.tolist()):
                seen = logits[row, head, t, : i + 1]
                for j in range(i + 1):
                    expected = float(logits[row, head, t, j])
                    if j % 3:
                        sigma = float(std[t]) * (i - j if scale_std else 1)
                        add = float(value[head, t, j]) * sigma
                        if kind == "gaussian" and scale_mean:
                            add += float(seen.mean())
                        if kind == "uniform" and scale_max:
                            add *= float(seen.max())
                        expected += add
                    assert float(found[row, head, t, j]) == pytest.approx(expected, abs=2e-5)


def test_logits_of_future_keys_count_for_nothing() -> None:
    for noise in (Noise("gaussian", True, scale_mean=True), Noise("uniform", True, scale_max=True)):
        logits, allowed, noisy, queries, keys = _logits()
        std = torch.ones(len(queries))
        found = apply(noise, logits, allowed, noisy, std, 0, queries, keys)
        spoiled = apply(noise, logits.masked_fill(~allowed, 1e4), allowed, noisy, std, 0, queries, keys)
        assert torch.equal(found[..., allowed], spoiled[..., allowed])


def test_deviation_grows_with_the_distance() -> None:
    """Measured over 500 queries: std_base * (i - j) / n."""
    n, std_base = 1000, 2.0
    queries, keys = _range(500, n), _range(0, 500)
    noisy = torch.ones(500, 500, dtype=torch.bool)
    noise = Noise("gaussian", scale_std=True, seed=2)
    added = apply(noise, torch.zeros(1, 64, 500, 500), noisy, noisy, torch.full((500,), std_base / n), 0, queries, keys)
    for d in (201, 402, 603):
        measured = added[0][:, queries[:, None] - keys[None] == d].std()
        assert float(measured) == pytest.approx(std_base * d / n, rel=0.03)


def test_row_statistics_are_needed_only_where_they_are_used() -> None:
    kinds = [(kind, mean, largest) for kind in ("gaussian", "uniform") for mean in (0, 1) for largest in (0, 1)]
    needing = [k for k in kinds if Noise(k[0], True, bool(k[1]), bool(k[2])).needs_row_statistics]
    assert needing == [("gaussian", 1, 0), ("gaussian", 1, 1), ("uniform", 0, 1), ("uniform", 1, 1)]


def test_the_seed_is_zero_unless_it_is_given() -> None:
    assert Noise("gaussian", scale_std=True) == Noise("gaussian", scale_std=True, seed=0)


def test_the_pool_is_made_once() -> None:
    assert noise_module.pool("gaussian", CPU).data_ptr() == noise_module.pool("gaussian", CPU).data_ptr()
