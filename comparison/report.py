"""What a comparison ends with: a table on the terminal and in Markdown, an Excel file, pictures, configurations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from comparison.frontier import Rule
from comparison.probes import RETRIEVAL
from comparison.results import Comparison, Measured, mean
from comparison.run import experiment_of
from pipeline.files import replacing, write_text
from pipeline.tables import keep_text
from pipeline.text import markdown_cell, printable
from tasks.results import Score

TABLE_FILE = "comparison.md"
EXCEL_FILE = "comparison.xlsx"
FRONTIER_FILE = "frontier.png"
DEPTHS_FILE = "depths.png"
NOT_CAUSAL = "†"
WIDTH = 170
"""Characters that the table needs."""
PROBE_NAMES = {"passkey": "key, garbage", "passkey_text": "key, text", "ruler": "RULER"}


@dataclass(frozen=True)
class Row:
    """A setting as tables have it; None for what is not measured."""

    id: str
    label: str
    loss: float | None
    loss_difference: Score | None
    retrieval: float | None
    retrieval_difference: Score | None
    probes: dict[str, float | None]
    nats: dict[str, float | None]
    seconds_per_1k: float | None
    peak_gib: float | None
    note: str


def rows_of(found: Comparison) -> list[Row]:
    """The reported settings in the order of their losses; incomplete ones last."""
    baseline = found.baseline()
    rules: dict[str, list[str]] = {}
    for rule, key in found.recommendations().items():
        rules.setdefault(key, []).append(rule)
    rows = [_row(found, key, baseline, rules.get(key, [])) for key in found.reported()]
    return sorted(rows, key=lambda row: (row.loss is None, row.loss or 0.0))


def _row(found: Comparison, key: str, baseline: str | None, rules: list[Rule] | list[str]) -> Row:
    one, items = found.settings[key], found.half(chooses=False)
    complete = found.complete(one, items)
    point = found.point(one, items) if complete else None
    losses = found.losses(one, items) if complete else []
    loss = retrieval = None
    if baseline is not None and key != baseline:
        loss, retrieval = found.differences(one, found.settings[baseline])
    notes = [*rules, *(["baseline"] if key == baseline else [])]
    if one.errors:
        notes.append(f"{len(one.errors)} failed: {next(iter(one.errors.values()))[:80]}")
    elif not complete:
        notes.append("incomplete")
    label = one.setting.label + ("" if one.setting.build().is_causal() else f" {NOT_CAUSAL}")
    return Row(
        key,
        label,
        mean(losses) if losses else None,
        loss,
        None if point is None else point.retrieval,
        retrieval,
        {probe: mean(marks) if (marks := found.marks(one, items, probe)) else None for probe in RETRIEVAL},
        {probe: mean(nats) if (nats := found.nats(one, items, probe)) else None for probe in RETRIEVAL},
        one.seconds_per_1k,
        one.peak_gib,
        ", ".join(notes),
    )


def cells_of(row: Row) -> dict[str, str]:
    """A row as people read it."""

    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    cells = {
        "setting": row.label,
        "loss": number(row.loss, 4),
        "Δ loss": _said(row.loss_difference, 4),
        "retrieval": number(row.retrieval, 3),
        "Δ retrieval": _said(row.retrieval_difference, 3),
    }
    cells |= {PROBE_NAMES[probe]: number(value, 2) for probe, value in row.probes.items()}
    cells |= {f"nats, {PROBE_NAMES[probe]}": number(value, 2) for probe, value in row.nats.items()}
    return cells | {
        "ms / 1k": number(None if row.seconds_per_1k is None else 1000 * row.seconds_per_1k, 1),
        "GiB": number(row.peak_gib, 2),
        "": row.note,
    }


def _said(difference: Score | None, digits: int) -> str:
    if difference is None:
        return ""
    text = f"{difference.score:+.{digits}f}"
    if difference.interval is None:
        return text
    low, high = difference.interval
    return f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]"


def notes_of(found: Comparison) -> list[str]:
    """What must be known to read the table."""
    request, half = found.request, found.half(chooses=False)
    counts = {probe: sum(item.probe == probe for item in half) for probe in ("loss", *RETRIEVAL)}
    baseline = found.baseline()
    lines = [
        f"{request['model']}, window {request['window']:,}, target {request['target']:,} tokens, {request['dtype']},"
        f" {found.record['device']}.",
        f"Loss: mean nats of the tokens beyond the window over {counts['loss']} texts. Retrieval: the mean of passkeys"
        f" in garbage ({counts['passkey']}) and in text ({counts['passkey_text']}) and of RULER's tasks"
        f" ({counts['ruler']} prompts), prompts of {', '.join(f'{n:,}' for n in request['sizes']['lengths'])} tokens.",
        "Nats: of the reference answer, lower is better.",
    ]
    if baseline is not None:
        lines.append(
            f"Δ: against {found.settings[baseline].setting.label}, with Student's 95 % intervals of paired differences."
        )
    if found.tuned:
        lines.append("Settings were chosen on the other half of the texts and prompts; all numbers are of this half.")
    else:
        lines.append("Recommended settings were chosen on the numbers shown.")
    for one in (found.settings[key].setting for key in found.reported()):
        if one.measured:
            on = f"the choosing half, {', '.join(one.measured_on)}" if one.measured_on else "Python's help"
            lines.append(f"{one.label}: W = {one.window:,} was measured on {on}.")
    if any(not found.settings[key].setting.build().is_causal() for key in found.reported()):
        lines.append(
            f"{NOT_CAUSAL}: depends on the whole length; answers were read in one pass with their prompts, which is not"
            " quite decoding."
        )
    lines += [f"Left out, {one['label']}: {one['reason']}." for one in found.record["refused"]]
    return lines


def write_report(found: Comparison, console: Console | None = None) -> None:
    """Print the table, and write all files into the comparison's folder."""
    from comparison.pictures import draw_depths, draw_frontier
    from tasks.pictures.style import save

    console = console or wide_console()
    rows = rows_of(found)
    console.print(_table(found, rows))
    for line in notes_of(found):
        console.print(printable(line), highlight=False, markup=False)
    written = [found.folder / TABLE_FILE, found.folder / EXCEL_FILE]
    write_text(written[0], markdown(found, rows))
    write_excel(written[1], found, rows)
    for name, figure in ((FRONTIER_FILE, draw_frontier(found)), (DEPTHS_FILE, draw_depths(found))):
        if figure is not None:
            with replacing(found.folder / name) as file:
                save(figure, file)
            written.append(found.folder / name)
    for rule, key in found.recommendations().items():
        path = found.folder / f"{rule.replace(' ', '_')}.toml"
        text = toml_of(found, found.settings[key], rule)
        write_text(path, text)
        written.append(path)
        console.print(printable(f"\n{path}\n{text}", keep="\n"), highlight=False, markup=False)
    for path in written:
        console.print(printable(str(path)), highlight=False, markup=False)


def wide_console() -> Console:
    """A terminal that is too narrow for the table wraps its lines; Rich would break its cells."""
    usual = Console(soft_wrap=True)
    return Console(soft_wrap=True, width=max(usual.width, WIDTH))


def _table(found: Comparison, rows: list[Row]) -> Table:
    """Without what would make it too wide for a terminal; the Markdown file has all."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("setting", overflow="fold", max_width=44)
    shown = [name for row in rows[:1] for name in cells_of(row) if name != "setting" and not name.startswith("nats")]
    for name in shown:
        table.add_column(name, justify="left" if not name else "right", no_wrap=bool(name))
    for row in rows:
        cells = cells_of(row)
        table.add_row(printable(cells["setting"]), *(printable(cells[name]) for name in shown))
    return table


def markdown(found: Comparison, rows: list[Row]) -> str:
    """The whole table with its notes."""
    cells = [{name: markdown_cell(cell) for name, cell in cells_of(row).items()} for row in rows]
    table = pd.DataFrame(cells).to_markdown(index=False, disable_numparse=True)
    notes = "\n".join(f"- {markdown_cell(line)}" for line in notes_of(found))
    return f"# Methods compared\n\n{table}\n\n{notes}\n"


def write_excel(path: Path, found: Comparison, rows: list[Row]) -> None:
    """Sheets: the table in numbers, all settings with what chose them, and every score."""
    sheets = {"reported": pd.DataFrame(map(_numbers, rows)), "settings": pd.DataFrame(_all_settings(found)),
              "items": pd.DataFrame(_all_items(found))}  # fmt: skip
    with replacing(path) as file, pd.ExcelWriter(file, engine="openpyxl") as writer:
        for name, frame in sheets.items():
            frame.to_excel(writer, sheet_name=name, index=False, freeze_panes=(1, 1))
            for cells in writer.sheets[name].iter_rows():
                for cell in cells:
                    if isinstance(cell.value, str):
                        keep_text(cell)


def _numbers(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"setting": printable(row.label), "loss": row.loss, "retrieval": row.retrieval}
    for name, difference in (("loss", row.loss_difference), ("retrieval", row.retrieval_difference)):
        score, ends = (None, None) if difference is None else (difference.score, difference.interval)
        low, high = ends or (None, None)
        found |= {f"Δ {name}": score, f"Δ {name} low": low, f"Δ {name} high": high}
    found |= {PROBE_NAMES[probe]: value for probe, value in row.probes.items()}
    found |= {f"nats, {PROBE_NAMES[probe]}": value for probe, value in row.nats.items()}
    return found | {"s / 1k": row.seconds_per_1k, "GiB": row.peak_gib, "note": printable(row.note), "id": row.id}


def _all_settings(found: Comparison) -> Iterator[dict[str, Any]]:
    """Every setting on the half that chose, or without tuning on all items."""
    items = found.half(chooses=found.tuned)
    points = dict(found.points(items))
    for key, one in found.settings.items():
        setting, point = one.setting, points.get(key)
        yield {
            "setting": printable(setting.label), "method": setting.method, "window": setting.window,
            "params": json.dumps(setting.params), "default": setting.default,
            "loss, choosing" if found.tuned else "loss": point and point.loss,
            "retrieval, choosing" if found.tuned else "retrieval": point and point.retrieval,
            "failed": len(one.errors),
        }  # fmt: skip


def _all_items(found: Comparison) -> Iterator[dict[str, Any]]:
    items = {item.id: item for item in found.items}
    for one in found.settings.values():
        for key in {**one.losses, **one.scores}:
            item = items.get(key)
            if item is not None:
                yield {
                    "setting": printable(one.setting.label), "probe": item.probe, "of": printable(item.dataset),
                    "length": item.length, "depth": item.depth, "chooses": item.chooses,
                    "loss": one.losses.get(key), "score": one.scores.get(key), "nats": one.nlls.get(key),
                }  # fmt: skip


def toml_of(found: Comparison, one: Measured, rule: Rule) -> str:
    """The configuration of `pred.py` for a setting; its benchmark is the needle test, to be replaced by one's own."""
    content = experiment_of(one.setting, found.request, f"{rule.replace(' ', '-')}-to-{found.request['target']}")
    params = content.pop("params")
    about = f"# {rule}: {one.setting.label}".splitlines()[0]
    lines = [printable(about), *(f"{key} = {_toml(value)}" for key, value in content.items())]
    if params:
        lines += ["", "[params]", *(f"{key} = {_toml(value)}" for key, value in params.items() if value is not None)]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A value of TOML: texts, numbers, truth values and lists of them, which JSON writes alike but for DEL."""
    return json.dumps(value, allow_nan=False).replace("\x7f", "\\u007f")
