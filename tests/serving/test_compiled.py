"""The plug-in's kernels compile for a GPU, on any machine, to what they were measured as. See
`tests/models/DPI/attention/kernels/test_compiled.py`.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytest.importorskip("triton")

TILE = 64 * 4 * 128  # bytes of 64 keys and values of 128 components


def test_decoding_keeps_two_tiles_in_flight_and_spills_nothing() -> None:
    cases = [
        ("dpi", {"chunk_coe": 1, "local_window": 16}, 128, 16),
        ("repro_se", {"group_size": 2.7, "window_size": 20}, 128, 48),  # tables of all keys, too
    ]
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "serving")))
    done = subprocess.run(
        [sys.executable, "-m", "tests.serving.compiling", json.dumps(cases)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for line in done.stdout.splitlines():
        kernels = json.loads(line)
        assert {kernel["name"] for kernel in kernels} == {"decode_pages_kernel", "read_kernel", "write_kernel"}
        for kernel in kernels:
            assert kernel["stack"] <= 64
            if kernel["name"] == "decode_pages_kernel":
                assert 2 * TILE <= kernel["shared"] <= (227 << 10) // 2, "two programs per multiprocessor"
                assert kernel["products"] >= 16
