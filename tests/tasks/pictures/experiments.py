"""Scored experiments made by hand."""

from collections.abc import Callable
from typing import Any

from tasks.results import COMPLETE, Experiment

Cell = dict[str, float]


def experiment(
    name: str,
    method: str | None,
    result: Any,
    *,
    window: int | None = 4096,
    status: str = COMPLETE,
    model: str = "some/model",
    detail: dict[str, Any] | None = None,
    target: int = 16384,
    params: dict[str, Any] | None = None,
    device: str | None = None,
) -> Experiment:
    """An experiment with `result` in its "result.json" and, where it has one, `detail` in "result_detail.json"."""
    results = {"result.json": result} if detail is None else {"result.json": result, "result_detail.json": detail}
    return Experiment(name, method, model, window, target, params or {}, status, results, device=device)


def cells(score: Callable[[int, float], float]) -> list[Cell]:
    """Needle's cells of two lengths, 1000 and 9000 tokens, and two depths, 50 and 100 %."""
    return [
        {"context_length": length, "depth_percent": depth, "score": score(length, depth)}
        for length in (1000, 9000)
        for depth in (50.0, 100.0)
    ]
