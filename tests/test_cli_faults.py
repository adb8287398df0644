"""The three scripts when disks, files and records are bad: the others are done, the bad one is named."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from pipeline import store
from tasks import get_task
from tasks.base import Dialogue, Record, Task
from tasks.options import Options
from tests.test_cli import ROOT, Run, model, place, run, snapshot

__all__ = ["model", "place", "run"]


def test_a_bad_experiment_does_not_stop_the_others(place: Path, run: Run) -> None:
    """In eval and in collect: the others are done, the bad one is named."""
    assert run("pred", "--cfg", "needle.toml")[0] == 0
    root = place / "results/needle/pred"
    for name, content in (("aaa", "{"), ("zzz", '{"config": {"task": "needle", "params": 3}}')):
        (root / name).mkdir()
        (root / name / "run.json").write_text(content)
    torn = root / "bbb"
    shutil.copytree(root / "dpi-tiny-64-to-256", torn)
    (torn / "needle.jsonl").write_text('{"id": "0", "pred": "x"}\n')
    code, out, err = run("eval", "--task", "needle", "--exp", "all")
    assert code == 3
    assert "dpi-tiny-64-to-256/result.json" in out
    for said in (
        "aaa/run.json' is not valid JSON",
        "zzz/run.json' is no run record: config.params = 3",
        "bbb/needle.jsonl' line 1 lacks the field",
        "3 of 4 experiments could not be scored",
    ):
        assert said in err
    store.write_json(torn / "result.json", 3)
    code, out, err = run("collect_results", "--task", "needle")
    assert code == 3
    assert "needle.png" in out
    assert "aaa/run.json' is not valid JSON" in err
    assert "zzz/run.json' is no run record" in err
    assert "bbb/result.json' has not the shape that needle writes" in err
    assert "(traceback in 'results/errors.log')" in err
    assert "3 of 4 experiments could not be collected" in err
    sheet = openpyxl.load_workbook(root / "needle_dpi.xlsx").active
    assert [row[0].value for row in sheet.iter_rows(min_row=2)] == ["dpi-tiny-64-to-256"]


def test_where_every_needle_record_failed_eval_and_collect_say_so(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Task, options: Options, dataset: str, record: Record, tokenizer: Any) -> Dialogue:
        raise MemoryError("no room")

    monkeypatch.setattr(type(get_task("needle")), "dialogue", fails)
    assert run("pred", "--cfg", "needle.toml")[0] == 3
    code, out, _ = run("eval", "--task", "needle", "--exp", "all")
    assert code == 0
    assert "6 failed" in out
    code, out, err = run("collect_results", "--task", "needle")
    assert code == 0
    assert "every record failed" in err
    assert "needle.png" not in out


def test_a_model_that_cannot_be_read_is_one_line_and_a_traceback_in_a_log(place: Path, run: Run, model: Path) -> None:
    broken = place / "broken"
    shutil.copytree(model, broken)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-64])
    code, _, err = run("pred", "--cfg", "needle.toml", "--set", "model=./broken")
    assert code == 2
    assert "(traceback in 'results/errors.log')" in err
    assert "Traceback (most recent call last)" not in err
    assert "Traceback (most recent call last)" in (place / "results/errors.log").read_text()


def test_a_full_disk_is_one_line_and_the_data_stay(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("pred", "--cfg", "needle.toml", "--limit", "3")[0] == 0
    assert run("eval", "--task", "needle", "--exp", "all")[0] == 0
    before = snapshot(place / "results")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    for script, arguments in (
        ("pred", ("--cfg", "needle.toml")),
        ("eval", ("--task", "needle", "--exp", "all")),
        ("collect_results", ("--task", "needle")),
    ):
        code, _, err = run(script, *arguments)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2
        assert len(errors) == 1
        assert "No space left on device: '" in errors[0]
        after = snapshot(place / "results")
        after.pop(place / "results/errors.log")
        assert after == before, script


def test_sigterm_ends_a_run_with_one_line_and_whole_records(place: Path, run: Run) -> None:
    path = place / "results/needle/pred/dpi-tiny-64-to-256/needle.jsonl"
    command = [sys.executable, str(ROOT / "pred.py"), "--cfg", "needle.toml", "--set", "times=2000", "--limit", "9000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        for _ in range(600):
            if path.exists() and path.stat().st_size:
                break
            time.sleep(0.1)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.splitlines()[-1] == "terminated; the same command goes on from here"
    assert "Traceback" not in err
    assert store.read_lines(path)


def test_hostile_names_reach_no_terminal(place: Path, run: Run) -> None:
    folder = place / "results/lb/pred/evil[red]\x1b[2J"
    folder.mkdir(parents=True)
    (folder / "qasper.jsonl").write_text('{"pred": "x", "answers": ["x"], "all_classes": null}\n')
    code, out, err = run("eval", "--task", "longbench", "--exp", "all")
    assert code == 0
    assert "evil[red]\\x1b[2J" in out
    code, table, more = run("collect_results", "--task", "longbench")
    assert code == 0
    (folder / "qasper.jsonl").write_text('{"pred": "x"}\n{\n')
    code, _, last = run("eval", "--task", "longbench", "--exp", "all")
    assert code == 3
    assert "evil[red]\\x1b[2J" in last
    assert "\x1b[2J" not in "".join([out, err, table, more, last])
