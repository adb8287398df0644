"""How samples are dealt over lengths."""

import pytest

from comparison.probes import dealt


@pytest.mark.parametrize("samples", [2, 3, 4, 7, 16, 33])
@pytest.mark.parametrize("places", [1, 2, 3, 4, 7])
def test_both_halves_cover_the_same_lengths(samples: int, places: int) -> None:
    found = dealt(samples, places, pairs=True)
    assert len(found) == samples
    assert set(found[::2]) == set(found[1::2]) <= set(range(places))
    counts = [found[1::2].count(place) for place in range(places)]
    assert max(counts) - min(counts) <= 1, "evenly"


@pytest.mark.parametrize("samples", [1, 2, 3, 16])
@pytest.mark.parametrize("places", [1, 3, 4])
def test_all_samples_are_dealt_evenly(samples: int, places: int) -> None:
    found = dealt(samples, places, pairs=False)
    assert found == sorted(found)
    counts = [found.count(place) for place in range(places)]
    assert sum(counts) == samples
    assert max(counts) - min(counts) <= 1


def test_a_single_sample_takes_the_middle() -> None:
    assert dealt(1, 3, pairs=False) == [1]
    assert dealt(2, 3, pairs=True) == [1, 1]
