"""Which settings nothing beats in loss and retrieval at once, and which to use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

Rule = Literal["lowest loss", "best retrieval", "balanced"]


@dataclass(frozen=True)
class Point:
    """loss: in nats, lower is better. retrieval: from 0 to 1, higher is better."""

    loss: float
    retrieval: float


Key = TypeVar("Key")


def frontier(points: Sequence[tuple[Key, Point]]) -> list[tuple[Key, Point]]:
    """The points that no other beats, from the lowest loss to the best retrieval."""
    found: list[tuple[Key, Point]] = []
    for key, point in sorted(points, key=lambda entry: (entry[1].loss, -entry[1].retrieval)):
        if not found or point.retrieval > found[-1][1].retrieval or point == found[-1][1]:
            found.append((key, point))
    return found


def recommended(points: Sequence[tuple[Key, Point]]) -> dict[Rule, Key]:
    """The setting of each rule.

    lowest loss: among equal losses, the best retrieval. best retrieval: among equal ones, the lowest loss. balanced:
    of the frontier the point nearest to the lowest loss and the best retrieval at once, with both axes scaled so that
    the frontier spans 0 to 1 on each.
    """
    edge = frontier(points)
    least, most = edge[0][1].loss, edge[-1][1].loss
    worst, best = edge[0][1].retrieval, edge[-1][1].retrieval

    def distance(entry: tuple[Key, Point]) -> float:
        loss = (entry[1].loss - least) / (most - least or 1.0)
        return math.hypot(loss, (best - entry[1].retrieval) / (best - worst or 1.0))

    highest = next(entry for entry in edge if entry[1].retrieval == best)
    return {"lowest loss": edge[0][0], "best retrieval": highest[0], "balanced": min(edge, key=distance)[0]}
