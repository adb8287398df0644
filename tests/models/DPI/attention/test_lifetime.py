"""What attention keeps goes with the objects that it belongs to: a deleted model leaves no table behind."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.DPI.attention import sdpa, triton
from models.DPI.attention.bands import Plan
from models.DPI.methods import build_method
from models.DPI.planning import Padding, make_plan
from tests.models.DPI import oracle

NOISE = {"chunk_coe": 1, "local_window": 16, "noise_type": "gaussian"}


def _through_sdpa(q: Tensor, k: Tensor, plan: Plan) -> None:
    sdpa.attend(q, k, k, plan.rows[0].segments, scaling=0.1, noise=plan.noise)


def _through_triton(q: Tensor, k: Tensor, plan: Plan) -> None:
    pytest.importorskip("triton")
    if q.shape[2] == 1:
        triton.attend_one(q, k, k, plan, scaling=0.1)
        assert plan.prepared
    else:
        triton.attend(q, k, k, plan.rows[0], scaling=0.1, noise=plan.noise)
        assert plan.rows[0].prepared


@pytest.mark.parametrize("attend", [_through_sdpa, _through_triton])
@pytest.mark.parametrize("name", ["dpi", "repro_dynamic_ntk"])
@pytest.mark.parametrize("queries", [1, 20])
def test_no_table_outlives_its_rope(attend: Callable[[Tensor, Tensor, Plan], None], name: str, queries: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rope = oracle.rope(64, 64)
    method = build_method(name, NOISE if name == "dpi" else {"factor": 4.0}, 64)
    plan = make_plan(method, rope, Padding(None, 150 - queries, queries, 1), seed=0)
    q, k = (torch.randn(1, 2, n, 64, device=device, dtype=torch.float16) for n in (queries, 150))
    attend(q, k, plan)
    bands = [band for row in plan.rows for segment in row.segments for band in segment.bands]
    tables = [table for band in bands for table in (*band.key_tables(9, device), *band.query_tables(device))]
    kept = [weakref.ref(table._base if table._base is not None else table) for table in tables]
    assert all(table() is not None for table in kept)
    del rope, method, plan, bands, tables
    gc.collect()
    assert [table() for table in kept] == [None] * len(kept)
