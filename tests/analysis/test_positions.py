"""Distances that methods show, against each method's definition."""

import math

import torch
from torch import Tensor

from analysis.positions import relative_distances
from models.DPI.help_funcs import construct_new_pi
from models.DPI.methods import Rope, build_method
from models.DPI.methods.base import frequencies_of

WINDOW, LENGTH = 24, 61
ROPE = Rope(frequencies_of(10_000.0, 16), WINDOW, 10_000.0)


def _seen(name: str, **params: float) -> Tensor:
    return relative_distances(build_method(name, params, WINDOW), ROPE, LENGTH, LENGTH).distance


def _causal() -> tuple[Tensor, Tensor, Tensor]:
    i, j = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None]
    return i, j, j <= i


def _equal(found: Tensor, expected: Tensor) -> None:
    _, _, causal = _causal()
    assert torch.equal(found.isnan(), ~causal)
    torch.testing.assert_close(found[causal], expected.double()[causal], atol=1e-5, rtol=0)


def test_original_and_yarn() -> None:
    i, j, _ = _causal()
    _equal(_seen("repro_original"), i - j)
    _equal(_seen("repro_yarn", factor=4.0), (i - j) / 4)


def test_selfextend() -> None:
    i, j, _ = _causal()
    far = i // 5 + 12 - 12 // 5 - j // 5
    _equal(_seen("repro_se", group_size=5, window_size=12), torch.where(i - j < 12, i - j, far))


def test_gali_has_the_positions_of_every_prefix() -> None:
    expected = torch.full((LENGTH, LENGTH), math.nan)
    for i in range(LENGTH):
        positions = construct_new_pi(i + 1, WINDOW, 6)
        expected[i, : i + 1] = positions[i].ceil() - positions
    found = _seen("dpi", chunk_coe=1, local_window=6)
    _equal(found, expected)
    assert found[~found.isnan()].max() <= WINDOW - 1


def test_fewer_cells_are_the_same_distances() -> None:
    method = build_method("dpi", {"chunk_coe": 7, "local_window": 6}, WINDOW)
    whole = relative_distances(method, ROPE, LENGTH, LENGTH)
    few = relative_distances(method, ROPE, LENGTH, 13)
    assert few.distance.shape == (13, 13)
    at = few.queries
    torch.testing.assert_close(few.distance, whole.distance[at][:, at], equal_nan=True)
    assert torch.equal(few.band, whole.band[at][:, at])
    assert set(few.band.flatten().tolist()) == {-1, 0, 1}
