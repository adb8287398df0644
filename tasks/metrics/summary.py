"""A score in percent with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tasks.metrics.bootstrap import bootstrap_stderr


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Mean of scores in [0, 1] as percent, its bootstrap standard error (None for one record) and their number."""
    stderr = bootstrap_stderr(values)
    return {
        "score": round(100 * sum(values) / len(values), 4),
        "stderr": None if stderr is None else round(100 * stderr, 4),
        "records": len(values),
    }


def average(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Unweighted mean over data sets, and its standard error where every data set has one (they are independent)."""
    errors = [summary["stderr"] for summary in summaries]
    known = [error for error in errors if error is not None]
    return {
        "score": round(sum(summary["score"] for summary in summaries) / len(summaries), 4),
        "stderr": round(math.hypot(*known) / len(known), 4) if len(known) == len(errors) else None,
        "datasets": len(summaries),
    }
