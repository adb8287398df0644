import math
import random
import statistics

import pytest

from tasks.metrics.paired import paired_difference


def test_the_mean_is_that_of_groups_means_not_of_all_items() -> None:
    found = paired_difference([[1.0, 0.0], [1.0, 1.0, 1.0, 0.0]], [[0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert found.score == pytest.approx((0.5 - 0.25) / 2)
    assert found.count == 6


def test_the_interval_of_four_items_by_hand() -> None:
    """Differences of 1, 2, 3 and 4; Student's t of three degrees of freedom is 3.18245 in every table."""
    found = paired_difference([[2.0, 7.0, 12.0, 4.0]], [[1.0, 5.0, 9.0, 0.0]])
    assert (found.score, found.stderr) == pytest.approx((2.5, 0.645497))
    assert found.interval == pytest.approx((2.5 - 2.054260, 2.5 + 2.054260), abs=1e-5)


def test_groups_are_joined_by_welch_and_satterthwaite() -> None:
    """Squared errors of the groups' means 1/3 and 4/3: (5/3)² / (1/9 / 2 + 16/9 / 2) = 2.94, of which 2 are whole."""
    zeros = [0.0, 0.0, 0.0]
    found = paired_difference([[0.0, 1.0, 2.0], [0.0, 2.0, 4.0]], [zeros, zeros])
    half = 4.302653 * math.sqrt(5 / 3) / 2
    assert found.interval == pytest.approx((1.5 - half, 1.5 + half), abs=1e-5)


@pytest.mark.parametrize("sizes", [(4,), (3, 9)])
def test_it_misses_the_true_difference_as_often_as_it_says(sizes: tuple[int, ...]) -> None:
    """Of 1,500 draws 5 % are missed, give or take 1.7 % (three standard errors); a bootstrap's quantiles miss 17."""
    draw = random.Random(11)
    missed = 0
    for _ in range(1500):
        theirs = [[draw.gauss(3.0, 2.0) for _ in range(size)] for size in sizes]
        ours = [[value + draw.gauss(0.25, 0.5) for value in group] for group in theirs]
        interval = paired_difference(ours, theirs).interval
        assert interval is not None
        missed += not interval[0] <= 0.25 <= interval[1]
    assert 0.02 < missed / 1500 < 0.067


def test_a_geometric_mean_varies_as_its_resamples_do() -> None:
    """Against a bootstrap in plain loops."""
    draw = random.Random(2)
    theirs = [math.exp(draw.gauss(2.5, 0.5)) for _ in range(60)]
    ours = [mark * math.exp(draw.gauss(-0.1, 0.1)) for mark in theirs]
    found = paired_difference([ours], [theirs], geometric=True)
    assert found.score == pytest.approx(statistics.geometric_mean(ours) - statistics.geometric_mean(theirs))
    gaps = []
    for _ in range(3000):
        places = [draw.randrange(60) for _ in range(60)]
        means = [statistics.fmean(math.log(side[at]) for at in places) for side in (ours, theirs)]
        gaps.append(math.exp(means[0]) - math.exp(means[1]))
    assert found.stderr == pytest.approx(statistics.stdev(gaps), rel=0.06)


def test_what_both_share_takes_no_room_in_the_interval() -> None:
    hard = [0.0, 50.0, 90.0, 20.0]
    wide = paired_difference([[value + more for value, more in zip(hard, (1, 2, 1, 2), strict=True)]], [hard])
    assert wide.interval is not None
    assert wide.interval[1] - wide.interval[0] < 2


def test_without_a_spread_there_is_no_interval() -> None:
    hard = [0.0, 0.1, 0.9, 0.2]
    alike = paired_difference([[value + 0.3 for value in hard]], [hard])
    assert alike.score == pytest.approx(0.3)
    assert (alike.stderr, alike.interval, alike.count) == (None, None, 4)
    one = paired_difference([[1.0], [1.0, 0.0]], [[0.5], [0.0, 0.0]])
    assert (one.score, one.interval) == (0.5, None)
    mixed = paired_difference([[1.0, 0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0]])
    assert mixed.interval is not None, "one group's spread is known"


def test_items_must_be_the_same() -> None:
    with pytest.raises(ValueError, match=r"zip\(\)"):
        paired_difference([[1.0, 2.0, 3.0]], [[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"zip\(\)"):
        paired_difference([[1.0, 2.0]], [])
