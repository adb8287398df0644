"""Speed of attention over bands beside PyTorch's kernels, and of whole models beside the stock one.

From what `python -m benchmarks.attention --json` and `python -m benchmarks.model --json` write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.pictures.style import colour_of, tidy

# Key, label, colour. The first series' bars have the colours of their methods.
SERIES = (
    ("gali", "this project, rotation included (colour of the method)", colour_of("dpi")),
    ("flash", "PyTorch flash, plain causal", "#7A7A7A"),
    ("cudnn", "PyTorch cuDNN, plain causal", "#C4C4C4"),
)

# What a benchmark's line is called, and the colour of its method.
NAMED = (
    ("selfextend", colour_of("repro_se")),
    ("chunkllama", colour_of("repro_chunkllama")),
    ("yarn", colour_of("repro_yarn")),
    ("dyn", colour_of("repro_dynamic_ntk")),
    ("ntk", colour_of("repro_ntk")),
    ("stock", colour_of("repro_original")),
    ("original", colour_of("repro_original")),
)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results of `benchmarks.attention` in a folder's JSON files, later files' in place of earlier ones'."""
    needed = {"name", "keys", "queries", "batch", "gali", "work"}
    return list({(r["name"], r["keys"], r["batch"]): r for r in _read(folder, needed)}.values())


def read_models(folder: Path) -> list[dict[str, Any]]:
    """The results of `benchmarks.model`, likewise."""
    needed = {"name", "prefill", "decoding", "over_weights"}
    return list({r["name"]: r for r in _read(folder, needed)}.values())


def _read(folder: Path, needed: set[str]) -> Iterator[dict[str, Any]]:
    """Objects with these keys in lists in JSON files; what else lies there is left alone."""
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for result in content if isinstance(content, list) else []:
            if isinstance(result, dict) and needed <= result.keys():
                yield result


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
        colours = [_colour_in(result["name"]) for result in results] if key == "gali" else colour
        axis.barh(at, rates, height=0.92 * height, color=colours, label=label)
        for y, rate in zip(at, rates, strict=True):
            axis.annotate(f"{rate:,.0f}" if rate else "refused", (rate, y), xytext=(3, 0), textcoords="offset points",
                          fontsize=7.5, va="center")  # fmt: skip
    axis.set_yticks(range(len(results)), [_label(result) for result in results], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(right=1.12 * axis.get_xlim()[1])
    tidy(axis, "x")


def _colour_in(name: str) -> str:
    """The colour of the method that a benchmark's line names; GALI's where it names none."""
    return next((colour for key, colour in NAMED if key in name.casefold()), colour_of("dpi"))


def _label(result: dict[str, Any]) -> str:
    batch = f", batch {result['batch']}" if result["batch"] > 1 else ""
    return f"{result['name']}\n{result['keys']:,} keys{batch}"


def draw_models(results: list[dict[str, Any]]) -> Figure:
    """Whole models: seconds of prefill, milliseconds a generated token, memory over the weights; shorter is better."""
    panels = (
        ("prefill", "prefill, s", "{:.2f}"),
        ("decoding", "decoding, ms a token", "{:.1f}"),
        ("over_weights", "memory over the weights, GiB", "{:.1f}"),
    )
    figure, axes = plt.subplots(
        1, len(panels), figsize=(11.6, 1.0 + 0.38 * len(results)), layout="constrained", sharey=True
    )
    names = [result["name"] for result in results]
    colours = [_colour_in(name) for name in names]
    for axis, (key, label, form) in zip(axes, panels, strict=True):
        bars = axis.barh(range(len(results)), [result[key] for result in results], height=0.7, color=colours)
        axis.bar_label(bars, [form.format(result[key]) for result in results], fontsize=8, padding=3)
        axis.set_xlim(right=1.15 * axis.get_xlim()[1])
        axis.set_xlabel(f"{label} (shorter is better)", fontsize=9)
        tidy(axis, "x")
    axes[0].set_yticks(range(len(results)), names, fontsize=8)
    axes[0].invert_yaxis()
    return figure
