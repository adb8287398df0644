"""Scored experiments as one HTML page that needs nothing beside it: tables that sort, the picture, settings, failures.

Whatever comes from files is escaped. Links lead to prediction files by paths relative to the page.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline import store
from pipeline.paired import Difference
from pipeline.paper import PUBLISHED, with_published
from pipeline.tables import AVERAGE, HEAD, PUBLISHED_NOTE, columns_of, scores_of
from pipeline.text import printable
from tasks.base import Line, Task
from tasks.results import RESULT_FILE, Experiment, Score

MOST_FAILURES = 20
"""Failed records of an experiment that are shown."""
LONGEST_ERROR = 300
"""Characters of an error that are shown."""
_RECORDED = ("window", "data", "model_revision", "versions", "device", "git_revision", "generation", "processes",
             "started", "resumed")  # fmt: skip
"""Of a run record, besides its configuration."""
_KIND = [name for name in HEAD if name not in ("experiment", "status")]
"""What an experiment is, behind its scores: a small screen shows these first."""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_page(
    path: Path,
    experiments: Sequence[Experiment],
    folders: Sequence[Path],
    task: Task,
    *,
    against: str | None = None,
    differences: Sequence[Difference] = (),
) -> None:
    """Write the page, whole or not at all.

    experiments: in the order in which they are to stand. folders: those that they were read from. against: the
    baseline of the differences. The picture is the one that lies beside the page, `<task>.png`.
    """
    sections = [
        _scores(experiments, task),
        _differences(differences, against, task) if against is not None else "",
        _picture(path.with_suffix(".png"), task),
        _failures(folders, path.parent),
        _settings(folders),
    ]
    style, script = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    title = _text(f"{task.label}: {task.measure}")
    store.write_text(
        path,
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{style}</style>\n</head>\n'
        f"<body>\n<h1>{title}</h1>\n{''.join(sections)}<script>\n{script}</script>\n</body>\n</html>\n",
    )


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _scores(experiments: Sequence[Experiment], task: Task) -> str:
    columns = columns_of(experiments)
    shown = with_published(experiments, task, columns)
    rows = [scores_of(experiment, task, RESULT_FILE, columns) for experiment in shown]
    averaged = [AVERAGE] if any(row[AVERAGE] for row in rows) else []
    differ = len({average.count for row in rows if (average := row[AVERAGE]) is not None}) > 1
    body = []
    for experiment, row in zip(shown, rows, strict=True):
        kind = ' class="paper"' if experiment.status == PUBLISHED else ""
        cells = [_row_head(experiment.name), _cell(experiment.status)]
        cells += [_score_cell(row[name], task.digits, of=differ) for name in averaged]
        cells += [_score_cell(row[name], task.digits) for name in columns]
        cells += [_cell(getattr(experiment, name)) for name in _KIND]
        body.append(f"<tr{kind}>{''.join(cells)}</tr>\n")
    notes = ["In brackets: 95 % confidence intervals. A click on a column's head sorts by it."]
    if any(experiment.status == PUBLISHED for experiment in shown):
        notes.append(PUBLISHED_NOTE.replace("`", "").strip())
    number = len(experiments)
    said = f'<p class="soft">{number} experiment{"s" if number > 1 else ""}. {" ".join(map(_text, notes))}</p>\n'
    table = _table(("experiment", "status", *averaged, *columns, *_KIND), body)
    return f"{said}<h2>Scores</h2>\n{table}"


def _table(names: Sequence[str], rows: Sequence[str]) -> str:
    words = {"experiment", "status", "method", "model", "device"}
    heads = "".join(
        f'<th scope="col"{_number_class(name not in words)}><button type="button">{_text(name)}</button></th>'
        for name in names
    )
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table></div>\n"
    )


def _number_class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _row_head(name: str) -> str:
    return f'<th scope="row" data-value="{_text(name)}">{_text(name)}</th>'


def _cell(value: object) -> str:
    if value is None:
        return '<td data-value=""></td>'
    number = isinstance(value, int | float)
    shown = f"{value:,}" if number else _text(value)
    return f'<td data-value="{_text(value)}"{_number_class(number)}>{shown}</td>'


def _score_cell(score: Score | None, digits: int, kind: str = "", *, of: bool = False) -> str:
    """of: whether to say how many scores it is over."""
    if score is None or score.score is None:
        return '<td class="number" data-value=""></td>'
    value, _, interval = score.text(digits).partition(" ")
    if kind and score.score > 0:
        value = f"+{value}"
    behind = f" <small>{_text(interval)}</small>" if interval else ""
    behind += f" <small>of {score.count}</small>" if of else ""
    return f'<td class="number{kind}" data-value="{score.score!r}">{_text(value)}{behind}</td>'


def _differences(differences: Sequence[Difference], against: str, task: Task) -> str:
    columns = list(dict.fromkeys(name for found in differences for name in found.by_column))
    names = [*columns, *([AVERAGE] if any(found.average for found in differences) else [])]
    body = []
    for found in differences:
        scores = [*(found.by_column.get(name) for name in columns), *([found.average] if AVERAGE in names else [])]
        cells = "".join(_score_cell(score, task.digits, _direction(score)) for score in scores)
        records = sum(score.count or 0 for score in found.by_column.values())
        body.append(f"<tr>{_row_head(found.experiment)}{_cell(records)}{cells}</tr>\n")
    left_out = [f"{found.experiment}: {', '.join(found.left_out)}" for found in differences if found.left_out]
    said = (
        f"Each score less that of {against}, over the records that both have predicted, with the 95 % interval of the "
        "paired difference; bold where it leaves out 0. Without an interval: all records differ alike, or nothing is "
        "known of the spread."
    )
    if left_out:
        said += f" Left out, with fewer than two records in common or no mean over records: {'; '.join(left_out)}."
    table = _table(("experiment", "records", *names), body) if body else ""
    return f"<h2>Differences to {_text(against)}</h2>\n<p>{_text(said)}</p>\n{table}"


def _direction(score: Score | None) -> str:
    if score is None or score.score is None:
        return " gap"
    sure = score.interval is not None and (score.interval[0] > 0 or score.interval[1] < 0)
    return " gap" + (" clear" if sure else "")


def _picture(path: Path, task: Task) -> str:
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    what = _text(f"{task.label}: scores of all experiments")
    return f'<h2>Picture</h2>\n<figure><img alt="{what}" src="data:image/png;base64,{data}"></figure>\n'


def _failures(folders: Sequence[Path], where: Path) -> str:
    parts = []
    for folder in folders:
        failed = list(_failed_lines(folder))
        if not failed:
            continue
        items = "".join(
            f"<tr><td>{_link(file, where)}</td><td>{_text(line.get('id', ''))}</td>"
            f'<td class="error">{_text(str(line.get("error"))[:LONGEST_ERROR])}</td></tr>\n'
            for file, line in failed[:MOST_FAILURES]
        )
        more = f"<p>and {len(failed) - MOST_FAILURES:,} more</p>\n" if len(failed) > MOST_FAILURES else ""
        parts.append(
            f"<details open><summary>{_text(folder.name)}: {len(failed):,} failed</summary>\n"
            '<div class="scroll" tabindex="0"><table><thead><tr><th>file</th><th>record</th><th>error</th></tr></thead>'
            f"<tbody>{items}</tbody></table></div>{more}</details>\n"
        )
    return f"<h2>Failed records</h2>\n{''.join(parts)}" if parts else ""


def _failed_lines(folder: Path) -> Iterator[tuple[Path, Line]]:
    for path in sorted(folder.glob("[!.]*.jsonl")):  # not the parts of a run that is still going
        for line in store.best_lines(store.read_lines(path)):
            if store.is_failed(line):
                yield path, line


def _link(path: Path, where: Path) -> str:
    target = quote(Path(os.path.relpath(path, where)).as_posix())
    return f'<a href="./{target}">{_text(path.name)}</a>'


def _settings(folders: Sequence[Path]) -> str:
    parts = []
    for folder in folders:
        run = store.read_run(folder)
        if run is None:
            continue
        parts.append(
            f"<details><summary>{_text(folder.name)}</summary>\n"
            f'<div class="scroll" tabindex="0"><table><tbody>{"".join(_setting_rows(run))}</tbody></table></div>'
            "</details>\n"
        )
    return f"<h2>Settings</h2>\n{''.join(parts)}" if parts else ""


def _setting_rows(run: Mapping[str, Any]) -> Iterator[str]:
    entries = {**run["config"], **{key: run.get(key) for key in _RECORDED}}
    for key, value in entries.items():
        if value not in (None, [], {}):
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f'<tr><th scope="row">{_text(key)}</th><td><code>{_text(shown)}</code></td></tr>\n'
