"""Speed of attention over bands beside PyTorch's kernels, and of whole models beside the stock one.

From the tables of `benchmarks/RESULTS.md`, so that its numbers stand in one place.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.DPI.methods import METHODS
from models.DPI.methods.dpi import DPI
from models.DPI.methods.original import Original
from tasks.pictures.style import new_figure, tidy

# Key, label, colour. The first series' bars have the colours of their methods.
SERIES = (
    ("here", "this project, rotation included (colour of the method)", DPI.colour),
    ("flash", "PyTorch flash, plain causal", "#7A7A7A"),
    ("cuDNN", "PyTorch cuDNN, plain causal", "#C4C4C4"),
)


def read_table(path: Path, first: str) -> list[dict[str, str]]:
    """The rows of a Markdown table by the names of their columns; columns without a name are left out.

    first: the name of the table's first column. Where there is no such table, or no file: no rows.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    begin = next((n for n, row in enumerate(cells) if len(row) > 1 and row[0] == first), len(cells))
    rows = []
    for line, row in zip(lines[begin + 2 :], cells[begin + 2 :], strict=True):
        if not line.startswith("|"):
            break
        rows.append({name: cell for name, cell in zip(cells[begin], row, strict=True) if name})
    return rows


def read_machine(path: Path) -> str:
    """The paragraph that names the machine and the versions of the figures, as one line; empty where there is none."""
    paragraphs = path.read_text(encoding="utf-8").split("\n\n") if path.is_file() else []
    return next((" ".join(part.split()) for part in paragraphs if part.startswith("One NVIDIA")), "")


def _number(text: str) -> float | None:
    """1,834 as 1834.0; None where nothing was measured."""
    return None if text in ("", "-") else float(text.replace(",", ""))


def draw(results: list[dict[str, str]]) -> Figure:
    """Prefill in TFLOP/s on the left, decoding in GB/s on the right; longer bars are faster.

    results: rows with case, keys, batch, here, flash and cuDNN.
    """
    kinds = [
        ("prefill", [r for r in results if "decoding" not in r["case"]], "TFLOP/s"),
        ("decoding, one query", [r for r in results if "decoding" in r["case"]], "GB/s"),
    ]
    kinds = [kind for kind in kinds if kind[1]]
    rows = max(len(kind[1]) for kind in kinds)
    figure = new_figure(0.6 + 5.4 * len(kinds), 1.2 + 0.55 * rows)
    axes = figure.subplots(1, len(kinds), squeeze=False)
    for axis, (title, chosen, name) in zip(axes.flat, kinds, strict=True):
        _bars(axis, chosen)
        axis.set_xlabel(f"{name} (longer is faster)")
        axis.set_title(title, fontsize=10)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside upper center", ncols=len(SERIES))
    return figure


def _bars(axis: Axes, results: list[dict[str, str]]) -> None:
    height = 0.8 / len(SERIES)
    for nth, (key, label, colour) in enumerate(SERIES):
        at = [row + (nth - 1) * height for row in range(len(results))]
        rates = [_number(result[key]) or 0.0 for result in results]
        colours = [_colour_in(result["case"]) for result in results] if key == "here" else colour
        axis.barh(at, rates, height=0.92 * height, color=colours, label=label)
        for y, rate in zip(at, rates, strict=True):
            axis.annotate(f"{rate:,.0f}" if rate else "refused", (rate, y), xytext=(3, 0), textcoords="offset points",
                          fontsize=7.5, va="center")  # fmt: skip
    axis.set_yticks(range(len(results)), [_label(result) for result in results], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(right=1.12 * axis.get_xlim()[1])
    tidy(axis, "x")


def _colour_in(name: str) -> str:
    """The colour of the method whose label a benchmark's line holds, the longest if several; GALI's if none.

    The stock model is the original.
    """
    if "stock" in name:
        return Original.colour
    named = [method for method in METHODS.values() if method.label.casefold() in name.casefold()]
    return max(named, key=lambda method: len(method.label), default=DPI).colour


def _label(result: dict[str, str]) -> str:
    batch = f", batch {result['batch']}" if result["batch"] != "1" else ""
    return f"{result['case']}\n{result['keys']} keys{batch}"


def draw_models(results: list[dict[str, str]]) -> Figure:
    """Whole models: seconds of prefill, milliseconds a generated token, memory over the weights; shorter is better.

    results: rows with method, "prefill s", "decoding ms" and "over weights GiB".
    """
    panels = (
        ("prefill s", "prefill, s", "{:.2f}"),
        ("decoding ms", "decoding, ms per token", "{:.1f}"),
        ("over weights GiB", "memory over the weights, GiB", "{:.2f}"),
    )
    figure = new_figure(11.6, 1.0 + 0.38 * len(results))
    axes = figure.subplots(1, len(panels), sharey=True)
    names = [result["method"] for result in results]
    for axis, (key, label, form) in zip(axes, panels, strict=True):
        values = [_number(result[key]) or 0.0 for result in results]
        bars = axis.barh(range(len(results)), values, height=0.7, color=[_colour_in(name) for name in names])
        axis.bar_label(bars, [form.format(value) for value in values], fontsize=8, padding=3)
        axis.set_xlim(right=1.15 * axis.get_xlim()[1])
        axis.set_xlabel(f"{label} (shorter is better)", fontsize=9)
        tidy(axis, "x")
    axes[0].set_yticks(range(len(results)), names, fontsize=8)
    axes[0].invert_yaxis()
    return figure
