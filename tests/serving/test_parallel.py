"""An engine whose model is spread over two processes says the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.engines import GALI, Reference
from tests.serving.servers import running

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@pytest.mark.skipif(len(CORES) < 2, reason="vLLM binds each of two processes to a core of its own")
def test_two_processes_hold_half_of_the_heads_each(
    reference: Reference, prompts: list[list[int]], tmp_path: Path
) -> None:
    chosen = [prompt for prompt in prompts if len(prompt) in (300, 777, 1500)]
    asked, said, log = (tmp_path / name for name in ("asked", "said", "log"))
    asked.write_text(json.dumps({"options": {"tensor_parallel_size": 2}, "prompts": chosen}))
    command = [sys.executable, "-m", "tests.serving.parallel_engine", str(asked), str(said)]
    bound = {"VLLM_CPU_OMP_THREADS_BIND": f"{CORES[0]}|{CORES[1]}"}
    with (
        log.open("w") as written,
        running(command, env=bound, stdout=written, stderr=subprocess.STDOUT) as process,
    ):
        process.wait(550)
    assert said.is_file(), log.read_text(encoding="utf-8")[-3000:]
    assert json.loads(said.read_text()) == reference.continuations(GALI, chosen)
