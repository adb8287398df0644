"""Speed of attention over bands beside PyTorch's kernels, from what `python -m benchmarks.attention --json` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.pictures.style import colour_of, tidy

# Key, label, colour. GALI's colour stands for all that runs in this project's kernels.
SERIES = (
    ("gali", "GALI's kernels, rotation included", colour_of("dpi")),
    ("flash", "PyTorch flash, plain causal", "#7A7A7A"),
    ("cudnn", "PyTorch cuDNN, plain causal", "#C4C4C4"),
)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results of all JSON files of that form in a folder, later files' in place of earlier ones'. May be none."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for result in content if isinstance(content, list) else []:
            if isinstance(result, dict) and {"name", "keys", "queries", "batch", "gali", "work"} <= result.keys():
                found[result["name"], result["keys"], result["batch"]] = result
    return list(found.values())


def draw(results: list[dict[str, Any]]) -> Figure:
    """Prefill in TFLOP/s on the left, decoding in GB/s on the right; longer bars are faster."""
    kinds = [
        ("prefill", [r for r in results if r["queries"] > 1], 1e-9, "TFLOP/s"),
        ("decoding, one query", [r for r in results if r["queries"] == 1], 1e-6, "GB/s"),
    ]
    kinds = [kind for kind in kinds if kind[1]]
    rows = max(len(kind[1]) for kind in kinds)
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(0.6 + 5.4 * len(kinds), 1.2 + 0.55 * rows), squeeze=False, layout="constrained"
    )
    for axis, (title, chosen, unit, name) in zip(axes.flat, kinds, strict=True):
        _bars(axis, chosen, unit)
        axis.set_xlabel(f"{name} (longer is faster)")
        axis.set_title(title, fontsize=10)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside lower center", ncols=len(SERIES))
    return figure


def _bars(axis: Axes, results: list[dict[str, Any]], unit: float) -> None:
    """unit: what work per millisecond is multiplied by."""
    height = 0.8 / len(SERIES)
    for nth, (key, label, colour) in enumerate(SERIES):
        at = [row + (nth - 1) * height for row in range(len(results))]
        rates = [result["work"] / result[key] * unit if result.get(key) else 0.0 for result in results]
        axis.barh(at, rates, height=0.92 * height, color=colour, label=label)
        for y, rate in zip(at, rates, strict=True):
            axis.annotate(f"{rate:,.0f}" if rate else "refused", (rate, y), xytext=(3, 0), textcoords="offset points",
                          fontsize=7.5, va="center")  # fmt: skip
    axis.set_yticks(range(len(results)), [_label(result) for result in results], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(right=1.12 * axis.get_xlim()[1])
    tidy(axis, "x")


def _label(result: dict[str, Any]) -> str:
    batch = f", batch {result['batch']}" if result["batch"] > 1 else ""
    return f"{result['name']}\n{result['keys']:,} keys{batch}"
