"""The backward pass compiles for a GPU, on any machine: products on the tensor cores, no spilled registers where the
gradient of queries is computed, and few where those of keys and values are, whose sums fill a thread's registers."""

import json
import os
import subprocess
import sys

from tests.conftest import ROOT
from tests.models.DPI.attention.kernels.test_compiled import CHUNK_FREE, SHARED_MEMORY


def test_backward() -> None:
    cases = [["dpi", CHUNK_FREE, 128], ["repro_original", {}, 256, 50.0]]
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.DPI.attention.kernels.compiling_backward", json.dumps(cases)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    common, wide = ({kernel["name"]: kernel for kernel in json.loads(line)} for line in done.stdout.splitlines())
    for case in (common, wide):
        for name in ("query_kernel", "key_kernel"):
            assert case[name]["shared"] <= SHARED_MEMORY
            assert case[name]["products"] >= 16
        assert case["key_kernel"]["stack"] <= 1024
        assert case["delta_kernel"]["stack"] == 0
    assert common["query_kernel"]["stack"] == 0
    assert wide["query_kernel"]["stack"] <= 256
    assert common["query_kernel"]["loop_stores"] == 0
    assert common["key_kernel"]["loop_stores"] <= 4  # of log-sum-exps; probabilities stay where the products want them
