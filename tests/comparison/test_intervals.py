import random

import pytest

from comparison.intervals import paired_difference


def test_the_mean_is_that_of_groups_means_not_of_all_items() -> None:
    found = paired_difference([[1.0, 0.0], [1.0, 1.0, 1.0, 0.0]], [[0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert found.mean == pytest.approx((0.5 - 0.25) / 2)


def test_the_interval_is_that_of_resampling_by_hand() -> None:
    """Another generator and plain loops; quantiles of 20,000 resamples agree to some thousandths."""
    draw = random.Random(5)
    sizes = (7, 13)
    ours = [[draw.gauss(0.3, 0.4) for _ in range(size)] for size in sizes]
    theirs = [[draw.gauss(0.0, 0.4) for _ in range(size)] for size in sizes]
    found = paired_difference(ours, theirs)
    means = []
    for _ in range(20_000):
        groups = []
        for a, b in zip(ours, theirs, strict=True):
            places = [draw.randrange(len(a)) for _ in a]
            groups.append(sum(a[at] - b[at] for at in places) / len(a))
        means.append(sum(groups) / len(groups))
    means.sort()
    assert found.low == pytest.approx(means[int(0.025 * len(means))], abs=0.012)
    assert found.high == pytest.approx(means[int(0.975 * len(means))], abs=0.012)
    assert found == paired_difference(ours, theirs), "the same in every run"


def test_what_both_share_takes_no_room_in_the_interval() -> None:
    hard = [0.0, 5.0, 9.0, 2.0]
    found = paired_difference([[value + 0.5 for value in hard]], [hard])
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_one_item_has_no_interval() -> None:
    found = paired_difference([[1.0], [1.0, 0.0]], [[0.5], [0.0, 0.0]])
    assert (found.mean, found.low, found.high) == (0.5, None, None)


def test_items_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        paired_difference([[1.0, 2.0, 3.0]], [[1.0, 2.0]])
