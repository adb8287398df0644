"""The demo's table: what the results folder has, by method in their usual order."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from models.DPI.methods import METHODS
from models.DPI.methods.original import Original
from pipeline import store
from tasks import get_task
from tasks.errors import UserError
from tools import demo
from tools.demo import NEEDLE_LENGTHS, PERPLEXITY_LENGTHS, TASKS, commands, environment, summary


def scored(results: Path, task_name: str, method: str, result: object) -> None:
    """A scored experiment of one record in a results folder."""
    task = get_task(task_name)
    folder = results / task.folder / f"{method}-tiny"
    folder.mkdir(parents=True)
    config = {"task": task_name, "method": method, "model": "tiny", "max_pe": 4096, "params": {}}
    datasets = {task_name: {"records": 1, "limited": False}}
    store.write_json(folder / "run.json", {"config": config, "window": 512, "datasets": datasets})
    (folder / f"{task_name}.jsonl").write_text('{"id": "0"}\n')
    store.write_json(folder / "result.json", result)


def cells(shares: Mapping[str, tuple[float, float]]) -> list[dict[str, float]]:
    """Needle's result: the share found at each length, at two depths."""
    return [
        {"context_length": int(length), "depth_percent": depth, "score": score}
        for length, both in shares.items()
        for depth, score in zip((50.0, 100.0), both, strict=True)
    ]


def rows_of(results: Path) -> list[list[str]]:
    """The table's rows by cell, and its title first."""
    console = Console(width=160)
    with console.capture() as capture:
        console.print(summary(results))
    lines = capture.get().splitlines()
    return [[lines[0].strip()], *([cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line)]


def test_methods_are_in_their_order_with_means_over_depths(tmp_path: Path) -> None:
    for method in ("repro_original", "repro_yarn"):
        best = method == "repro_yarn"
        scored(tmp_path, "needle", method, cells({length: (1.0, float(best)) for length in NEEDLE_LENGTHS}))
        scored(tmp_path, "pg19", method, dict.fromkeys(PERPLEXITY_LENGTHS, 52.4 if best else 321.6))
    (title,), yarn, original = rows_of(tmp_path)
    assert title.endswith("window 512")
    assert yarn == ["YaRN", *["1.00"] * 4, *["52"] * 4]
    assert original == ["original", *["0.50"] * 4, *["322"] * 4]


def test_a_new_method_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = type("Toy", (Original,), {"name": "toy", "label": "Toy", "__annotations__": {}})
    monkeypatch.setitem(METHODS, "toy", toy)
    for method in ("toy", "repro_yarn"):
        scored(tmp_path, "needle", method, cells({"500": (0.0, 1.0)}))
        scored(tmp_path, "pg19", method, {"512": 99.0})
    assert [row[0] for row in rows_of(tmp_path)[1:]] == ["YaRN", "Toy"]


def test_what_is_not_scored_by_both_is_left_out(tmp_path: Path) -> None:
    for method in ("dpi", "repro_yarn"):
        scored(tmp_path, "needle", method, cells({"500": (1.0, 1.0)}))
    scored(tmp_path, "pg19", "dpi", {"512": 99.0})
    assert [row[:2] for row in rows_of(tmp_path)[1:]] == [["GALI", "1.00"]]
    with pytest.raises(UserError, match="no experiments"):
        summary(tmp_path / "absent")


def test_commands_score_and_collect_every_task(tmp_path: Path) -> None:
    typed = commands(tmp_path)
    for script in ("eval.py", "collect_results.py"):
        tasks = [command[2] for command in typed if command[0] == script]
        assert tasks == list(TASKS)


def test_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5}, raising=False)
    code = "import torch; print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert environment()["OMP_NUM_THREADS"] == "7"


def test_time_and_text_are_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def fails(command: list[str], **options: Any) -> SimpleNamespace:
        said.append(" ".join(capsys.readouterr().out.split()))
        assert options["env"] == environment()
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(subprocess, "run", fails)
    monkeypatch.setattr(sys, "argv", ["demo"])
    with pytest.raises(SystemExit, match="3"):
        demo.main()
    assert len(said) == 1
    assert "about two minutes on two cores" in said[0]
    assert "Python's documentation" in said[0]
