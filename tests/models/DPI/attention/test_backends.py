"""The table of implementations, and what its rows may import."""

import subprocess
import sys

import torch

from models.DPI.attention import api, sdpa
from models.DPI.attention.backends import BACKENDS
from models.DPI.methods import build_method
from models.DPI.planning import Padding, make_plan
from tests.conftest import ROOT
from tests.models.DPI import oracle

PLAN = make_plan(build_method("repro_original", {}, 24), oracle.rope(24, 16), Padding(None, 0, 9, 1), seed=0)


def test_rows_have_the_names_that_users_write() -> None:
    assert api.IMPLEMENTATIONS == ("auto", "triton", "flash", "sdpa", "reference")
    assert all(backend.name == name for name, backend in BACKENDS.items())
    assert not BACKENDS["reference"].by_name_only
    assert BACKENDS["reference"].obstacle(torch.zeros(1, 1, 1, 8), PLAN) is None


def test_flash_says_what_stands_in_its_way() -> None:
    q = torch.zeros(1, 2, 9, 16, dtype=torch.bfloat16)
    assert sdpa.flash_obstacle(q, PLAN) == "it needs a CUDA device, and the tensors are on cpu"


def test_triton_is_imported_by_its_kernels_alone() -> None:
    code = (
        "import sys, torch\n"
        "from models.DPI.attention import api\n"
        "from models.DPI.methods import Rope, build_method\n"
        "from models.DPI.planning import Padding, make_plan\n"
        "plan = make_plan(build_method('repro_se', {'group_size': 2, 'window_size': 4}, 8),\n"
        "                 Rope(torch.ones(4), 8), Padding(None, 0, 20, 1), seed=0)\n"
        "q = torch.zeros(1, 1, 20, 8)\n"
        "for impl in ('auto', 'sdpa', 'reference'):\n"
        "    api.attend(q, q, q, plan, scaling=1.0, impl=impl)\n"
        "loaded = [x for x in sys.modules if x == 'triton' or x.startswith('models.DPI.attention.kernels')]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
