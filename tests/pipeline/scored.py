"""Scored experiments in folders, written by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import report, store
from tasks import get_task
from tasks.base import Task
from tests.pipeline.fake_task import FakeTask

NEEDLE, PG19, LONGBENCH = get_task("needle"), get_task("pg19"), get_task("longbench")


def experiment(
    root: Path,
    task: Task,
    name: str,
    method: str,
    results: dict[str, Any],
    *,
    window: int = 4096,
    expected: int = 2,
    predicted: int = 2,
    params: dict[str, Any] | None = None,
    limited: bool = False,
) -> Path:
    """Its folder, with a run record, `predicted` lines and `results` by file name."""
    folder = root / task.folder / name
    folder.mkdir(parents=True)
    config = {"task": task.name, "method": method, "model": "some/model", "max_pe": 16384, "params": params or {}}
    datasets = {"d": {"records": expected, "limited": limited}}
    run = {"config": config, "window": window, "datasets": datasets, "device": "CPU"}
    store.write_json(folder / "run.json", run)
    (folder / "d.jsonl").write_text("".join(json.dumps({"id": str(i)}) + "\n" for i in range(predicted)))
    for file, content in results.items():
        store.write_json(folder / file, content)
    return folder


def cells(score: Callable[[int, float], float]) -> list[dict[str, Any]]:
    """Needle's, of two lengths and two depths."""
    return [
        {"context_length": length, "depth_percent": depth, "score": score(length, depth)}
        for length in (1000, 9000)
        for depth in (50.0, 100.0)
    ]


def collect(root: Path, task: Task) -> dict[str, Path]:
    """What is written of all experiments, by name."""
    folders = store.list_experiments(root, task)
    return {path.name: path for path in report.collect(folders, task, root / task.folder)}


SQUARES = FakeTask()
