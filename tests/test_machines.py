"""One run on several machines, each with a launcher of its own. Here the machines are working directories."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_cli import model, place

__all__ = ["model", "place"]

pytestmark = pytest.mark.timeout(400)

FOLDER = "needle/pred/dpi-tiny-64-to-256"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def machines(folders: list[Path], *arguments: str) -> list[tuple[int, str]]:
    """Exit code and stderr of each machine's launcher, which starts one process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    port = free_port()
    launchers = []
    for rank, folder in enumerate(folders):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(folders))]
        command += ["--node-rank", str(rank), "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
        command += ["--master-port", str(port), str(ROOT / "pred.py"), *arguments]
        launchers.append(
            subprocess.Popen(
                command, cwd=folder, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        )
    try:
        errs = [launcher.communicate(timeout=300)[1] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    return [(launcher.returncode, err) for launcher, err in zip(launchers, errs, strict=True)]


def test_two_machines_give_the_file_of_one_process(place: Path) -> None:
    arguments = ["--cfg", str(place / "needle.toml"), "--limit", "5", "--results"]
    [(code, err)] = machines([place], *arguments, str(place / "one"))
    assert code == 0, err
    (other := place / "other").mkdir()
    for code, err in machines([place, other], *arguments, str(place / "two")):
        assert code == 0, err
    single, double = (place / name / FOLDER for name in ("one", "two"))
    assert (double / "needle.jsonl").read_bytes() == (single / "needle.jsonl").read_bytes()
    assert json.loads((double / "run.json").read_text())["processes"] == 2
    assert not list(double.glob(".part-*"))
    assert {path.name for path in double.glob("times-*.csv")} == {"times-0.csv", "times-1.csv"}


def test_machines_with_different_data_are_refused(place: Path) -> None:
    (other := place / "other").mkdir()
    (other / "books").mkdir()
    for book in (place / "books").iterdir():
        (other / "books" / book.name).write_text(book.read_text() + "And more.")
    found = machines(
        [place, other], "--cfg", str(place / "any.toml"), "--results", str(place / "results"),
        "--set", "task=pg19", "--set", "data_dir='books'", "--set", "max_pe=1500",
    )  # fmt: skip
    for code, err in found:
        assert code != 0
        assert "the machines of this run have different records" in err
        assert "give all machines the same data_dir" in err
    assert not (place / "results").exists()
