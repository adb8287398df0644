"""A program of its own: runs a command, and kills all that it started when it ends or standard input does.

A test holds the other end of standard input. However the test's process ends, killed ones included, no server stays.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """Run it; returns its exit code."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def wait_for_the_end_of_input() -> None:
        sys.stdin.buffer.read()
        kill()

    threading.Thread(target=wait_for_the_end_of_input, daemon=True).start()
    code = process.wait()
    kill()
    return code


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]) & 0xFF)  # not waiting for the thread that reads
