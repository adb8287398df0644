import math
import random

import pytest

from comparison.frontier import Point, frontier, recommended


def drawn(seed: int) -> list[tuple[int, Point]]:
    """Points on a coarse grid, so that many are equal in one coordinate or both."""
    draw = random.Random(seed)
    return [(n, Point(draw.randint(0, 6) / 3, draw.randint(0, 6) / 6)) for n in range(draw.randint(1, 25))]


@pytest.mark.parametrize("seed", range(60))
def test_the_frontier_is_what_nothing_dominates(seed: int) -> None:
    points = drawn(seed)
    kept = {
        key
        for key, one in points
        if not any(
            other.loss <= one.loss
            and other.retrieval >= one.retrieval
            and (other.loss < one.loss or other.retrieval > one.retrieval)
            for _, other in points
        )
    }
    found = frontier(points)
    assert {key for key, _ in found} == kept
    assert [point.loss for _, point in found] == sorted(point.loss for _, point in found)


def beats(one: Point, other: Point) -> bool:
    """At least as good in both, and better in one."""
    return one.loss <= other.loss and one.retrieval >= other.retrieval and one != other


@pytest.mark.parametrize("seed", range(60))
def test_rules_by_brute_force(seed: int) -> None:
    points = drawn(seed)
    by_key = dict(points)
    found = {rule: by_key[key] for rule, key in recommended(points).items()}
    least = min(point.loss for point in by_key.values())
    best = max(point.retrieval for point in by_key.values())
    assert found["lowest loss"] == Point(least, max(p.retrieval for p in by_key.values() if p.loss == least))
    assert found["best retrieval"] == Point(min(p.loss for p in by_key.values() if p.retrieval == best), best)
    edge = [p for p in by_key.values() if not any(beats(o, p) for o in by_key.values())]
    width = max(p.loss for p in edge) - least
    height = best - min(p.retrieval for p in edge)

    def far(point: Point) -> float:
        return math.hypot(
            (point.loss - least) / width if width else 0, (best - point.retrieval) / height if height else 0
        )

    assert far(found["balanced"]) == pytest.approx(min(map(far, edge)))
    assert found["balanced"] in edge


def test_a_bend_is_balanced() -> None:
    points = [("steep", Point(3.0, 0.0)), ("bend", Point(3.1, 0.8)), ("flat", Point(4.0, 1.0)), ("bad", Point(9, 0.5))]
    assert recommended(points) == {"lowest loss": "steep", "best retrieval": "flat", "balanced": "bend"}
