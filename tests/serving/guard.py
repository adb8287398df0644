"""A program of its own: runs a command, and kills all that it started when it ends, standard input does, or a signal
asks for it.

A test holds the other end of standard input. However the test's process ends, killed ones included, no server stays.
Ctrl+C and `timeout` reach this process too, and not the command, which has a session of its own.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(command: list[str]) -> int:
    """Run it; returns its exit code."""
    process: subprocess.Popen[bytes] | None = None
    asked = threading.Event()

    def kill() -> None:
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def end(number: int, frame: Any) -> None:
        asked.set()
        kill()

    for number in SIGNALS:
        signal.signal(number, end)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    if asked.is_set():  # while it was being started
        kill()

    def wait_for_the_end_of_input() -> None:
        sys.stdin.buffer.read()
        kill()

    threading.Thread(target=wait_for_the_end_of_input, daemon=True).start()
    code = process.wait()
    kill()
    return code


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]) & 0xFF)  # not waiting for the thread that reads
