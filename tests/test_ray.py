"""pred.py --launcher ray on a cluster of this machine, with real processes, some of them killed. Needs Ray."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed; make test-ray runs these")

from pipeline import store
from tests.conftest import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

LOOPBACK = {
    "0100007F",  # 127.0.0.1
    "00000000000000000000000001000000",  # ::1
    "0000000000000000FFFF00000100007F",  # ::ffff:127.0.0.1
}
"""As /proc/net writes them."""
NEEDLE = "lengths = [0.7, 0.9]\ndepths = 5\ntimes = 2\nmax_new_tokens = 8\n"
"""Twenty records of the embedded model, whose window is 512."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with an experiment and a sweep on the embedded model."""
    (tmp_path / "one.toml").write_text(
        f'model = "tiny"\nexp_name = "dpi"\nmethod = "dpi"\ntask = "needle"\nmax_pe = 1024\n{NEEDLE}'
        "[params]\nchunk_coe = 1\nlocal_window = 128\n"
    )
    (tmp_path / "sweep.toml").write_text(
        f'{NEEDLE}limit = 6\n[sweep]\ntasks = ["needle"]\nmethods = ["dpi", "repro_yarn"]\n[[sweep.models]]\n'
        'model = "tiny"\nname = "tiny"\nwindows = [512]\ntargets = [1024, 2048]\n'
        "[sweep.params.dpi]\nchunk_coe = 1\nlocal_window = 128\n"
    )
    return tmp_path


@contextmanager
def started(place: Path, *arguments: str, launcher: str = "ray") -> Iterator[subprocess.Popen[str]]:
    """pred.py in a process group of its own; nothing of it is left at the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(ROOT / "pred.py"), *arguments]
    command += ["--launcher", "ray", "--workers", "3"] if launcher == "ray" else []
    with subprocess.Popen(
        command,
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(place: Path, *arguments: str, launcher: str = "ray") -> tuple[int, str]:
    """Exit code and stderr of a run that ends by itself."""
    with started(place, *arguments, launcher=launcher) as process:
        _, err = process.communicate(timeout=400)
    return process.returncode, err


def processes_of(session: int) -> dict[int, str]:
    """Processes of a session that live, with their command lines."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
            except OSError:
                continue
    return found


def workers_of(session: int) -> list[int]:
    """Processes of workers that are at a question."""
    return [pid for pid, command in processes_of(session).items() if command.startswith("ray::RayWorker.answer")]


def wait_for(true: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: float = 300) -> None:
    """Wait until something is true; fail where the process on which it depends has ended before."""
    end = time.monotonic() + seconds
    while not true():
        if process is not None and process.poll() is not None and not true():
            pytest.fail(process.communicate()[1])
        assert time.monotonic() < end
        time.sleep(0.02)


def lines(place: Path, results: str) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in (place / results).rglob("needle.jsonl"))


def files(place: Path, results: str) -> dict[str, bytes]:
    root = place / results
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.jsonl"))}


def test_a_worker_is_killed_and_the_file_is_that_of_one_process(place: Path) -> None:
    assert run(place, "--cfg", "one.toml", "--results", "one", launcher="none")[0] == 0
    with started(place, "--cfg", "one.toml", "--results", "three") as process:
        wait_for(lambda: lines(place, "three") >= 2 and workers_of(process.pid), process)
        victim = workers_of(process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "3 workers on this machine, without GPUs" in err
    assert err.count(" ended: ActorDiedError") == 1, "it was killed on the way"
    assert files(place, "three") == files(place, "one")
    folder = place / "three/needle/pred/dpi"
    assert not [line for line in store.read_lines(folder / "needle.jsonl") if store.is_failed(line)]
    record = json.loads((folder / "run.json").read_text())
    assert (record["processes"], record["device"]) == (3, "CPU")
    rows = list(csv.DictReader((folder / "times.csv").open()))
    assert len({row["id"] for row in rows}) == len(rows) == 20, "each once"
    assert {path.name for path in folder.iterdir()} == {".lock", "needle.jsonl", "run.json", "times.csv"}
    wait_for(lambda: not processes_of(process.pid), seconds=20)


def test_a_sweep_gives_the_files_of_one_process(place: Path) -> None:
    assert run(place, "--cfg", "sweep.toml", "--results", "one", launcher="none")[0] == 0
    code, err = run(place, "--cfg", "sweep.toml", "--results", "three")
    assert code == 0, err
    assert len(files(place, "one")) == 4
    assert files(place, "three") == files(place, "one")
    assert "experiment 4 of 4: yarn-tiny-512-to-2k (needle)" in err


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("moment", ["cluster", "records"])
def test_a_signal_ends_the_run_and_its_cluster(
    place: Path, number: signal.Signals, code: int, said: str, moment: str
) -> None:
    """To all processes of the terminal, as Ctrl-C is, while the cluster starts and in the middle of records."""
    ready: dict[str, Callable[[], object]] = {
        "cluster": lambda: any("gcs_server" in command for command in processes_of(process.pid).values()),
        "records": lambda: lines(place, "three"),
    }
    with started(place, "--cfg", "one.toml", "--results", "three") as process:
        wait_for(ready[moment], process)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, err = process.communicate(timeout=100)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"{said}; the same command goes on from here"
    wait_for(lambda: not processes_of(process.pid), seconds=20)
    if moment == "records":
        found = store.read_lines(place / "three/needle/pred/dpi/needle.jsonl")
        assert not any(map(store.is_failed, found))
        with store.lock(place / "three/needle/pred/dpi"):
            pass


def test_a_run_that_is_killed_leaves_no_process(place: Path) -> None:
    with started(place, "--cfg", "one.toml", "--results", "three") as process:
        wait_for(lambda: lines(place, "three"), process)
        process.kill()
        process.wait()
        wait_for(lambda: not workers_of(process.pid), seconds=60)
        wait_for(lambda: not processes_of(process.pid), seconds=200)  # Ray's agents look for their parent now and then


def test_it_listens_on_the_loopback_address_alone(place: Path) -> None:
    def listening() -> set[str]:
        owned = set()
        for pid in processes_of(process.pid):
            try:
                owned |= {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
            except OSError:
                continue
        found = set()
        for file in ("tcp", "tcp6"):
            for line in Path("/proc/net", file).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in owned:
                    found.add(fields[1].partition(":")[0])
        return found

    with started(place, "--cfg", "one.toml", "--results", "three") as process:
        wait_for(lambda: lines(place, "three"), process)
        found = listening()
    assert found
    assert found <= LOOPBACK


def test_mistakes_end_in_one_line(place: Path) -> None:
    code, err = run(place, "--cfg", "one.toml", "--set", f"model={place}")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: one.toml: "), err
    assert not (place / "results/needle").exists()
