"""The merge of a key head's parts against a softmax over all of them in fp64."""

import math

import pytest
import torch
import triton
from torch import Tensor

from models.DPI.attention.kernels.decode_arithmetic import merge

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _expected(parts: Tensor, log_totals: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """(splits, D, heads) and (splits, heads), base 2 -> (heads, D) and the natural log-sum-exps (heads,), fp64."""
    logs = log_totals.double() * math.log(2)
    if sinks is not None:
        logs = torch.cat((logs, sinks.double()[None]))
        parts = torch.cat((parts, torch.zeros_like(parts[:1])))
    weights = logs.softmax(0)
    return torch.einsum("sh,sdh->hd", weights, parts.double()), logs.logsumexp(0)


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("splits", [1, 16, 17, 40])
@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (3, 80), (4, 128), (16, 128), (7, 192)])
def test_parts_are_merged(splits: int, group: int, head_dim: int, with_sinks: bool) -> None:
    generator = torch.Generator().manual_seed(splits)
    members, block_d = triton.next_power_of_2(group), triton.next_power_of_2(head_dim)
    parts = torch.full((splits, block_d, members), float("nan"))
    log_totals = torch.full((splits, members), float("nan"))
    parts[:, :head_dim, :group] = torch.randn(splits, head_dim, group, generator=generator)
    log_totals[:, :group] = 30 * torch.randn(splits, group, generator=generator)
    log_totals[splits // 2 :, 0] = float("-inf")  # programs that saw no key
    log_totals[0, 0] = -40.0
    sinks = torch.randn(group, generator=generator) if with_sinks else None
    out = torch.full((group, head_dim + 3), float("nan"), device=DEVICE)
    lse = torch.full((group,), float("nan"), device=DEVICE)
    on_device = [x if x is None else x.to(DEVICE) for x in (parts, log_totals, sinks)]
    merge[(1,)](
        on_device[0],
        on_device[1],
        out,
        out.stride(0),
        lse,
        on_device[2],
        splits,
        GROUP=group,
        BLOCK_MEMBERS=members,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
    )
    expected, expected_lse = _expected(parts[:, :head_dim, :group], log_totals[:, :group], sinks)
    torch.testing.assert_close(out[:, :head_dim].cpu().double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.cpu().double(), expected_lse, rtol=1e-5, atol=1e-5)
    assert out[:, head_dim:].isnan().all()
