"""What a test starts ends with it, also where the test is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked up in /proc"),
]

# Writes its own process id and that of a child of its own, and stays.
STAYS = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
open(sys.argv[1] + ".new", "w").write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(float(sys.argv[2]))
"""


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["input ends", "the test is killed", "the command ends", "SIGINT", "SIGTERM", "SIGHUP"])
def test_nothing_stays(tmp_path: Path, how: str) -> None:
    ids = tmp_path / "ids"
    guarded = [sys.executable, "-m", "tests.serving.guard", sys.executable, "-c", STAYS, str(ids)]
    seconds = "0.1" if how == "the command ends" else "300"
    # A process between, which plays the part of pytest: it alone holds the guard's input.
    between = f"import subprocess, time; p = subprocess.Popen({[*guarded, seconds]!r}, stdin=subprocess.PIPE)\n"
    between += "p.stdin.close(); p.wait()" if how == "input ends" else "p.wait(); time.sleep(300)"
    if how == "input ends":
        between = between.replace(
            "p.stdin.close()", f"import os\nwhile not os.path.exists({str(ids)!r}): time.sleep(0.05)\np.stdin.close()"
        )
    if how.startswith("SIG"):  # pytest takes its time
        between = f"import signal\nsignal.signal(signal.{how}, lambda *_: None)\n{between}"
    process = subprocess.Popen(
        [sys.executable, "-c", between],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        wait_for(ids.exists)
        if how == "the test is killed":
            process.send_signal(signal.SIGKILL)
        elif how.startswith("SIG"):  # to the whole group, as a terminal and `timeout` send them
            os.killpg(process.pid, signal.Signals[how])
        started = [int(number) for number in ids.read_text().split()]
        wait_for(lambda: not any(lives(number) for number in started))
    finally:
        process.kill()
        process.wait(30)
