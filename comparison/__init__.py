"""Methods compared on one model: `compare.py`, and what it wrote, read again.

    import comparison

    found = comparison.load("results/compare/tiny-512-to-4096")
    comparison.draw_frontier(found)
    comparison.draw_depths(found)

`load` gives a `Comparison`: settings with their scores. The other two make figures of matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comparison.pictures import draw_depths, draw_frontier
    from comparison.results import Comparison, load

__all__ = ["Comparison", "draw_depths", "draw_frontier", "load"]

_HOMES = {
    "Comparison": "comparison.results",
    "draw_depths": "comparison.pictures",
    "draw_frontier": "comparison.pictures",
    "load": "comparison.results",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
