"""An engine whose model is spread over two processes says the same."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="vLLM binds each of two processes to a core of its own")
def test_two_processes_hold_half_of_the_heads_each(prompts: list[list[int]], expected: list[list[int]]) -> None:
    chosen = [number for number, prompt in enumerate(prompts) if len(prompt) in (300, 777, 1500)]
    asked = {"options": {"tensor_parallel_size": 2}, "prompts": [prompts[number] for number in chosen]}
    left_out = ("VLLM_ENABLE_V1_MULTIPROCESSING", "TRITON_INTERPRET")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serving.parallel_engine"],
        cwd=ROOT,
        env=environment | {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, complained = process.communicate(json.dumps(asked), timeout=550)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    lines = [line for line in said.splitlines() if line.startswith("[[")]
    assert lines, complained[-3000:]
    assert json.loads(lines[-1]) == [expected[number] for number in chosen]
