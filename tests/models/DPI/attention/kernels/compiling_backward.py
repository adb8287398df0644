"""Compile what the backward pass would launch on a GPU, as `compiling` does for the forward pass.

Argument: JSON, a list of the arguments of `compile_case`. A line of JSON for each.
"""

import json
import sys
from typing import Any

import torch

from models.DPI.attention.cards import HOPPER
from models.DPI.attention.kernels import backward, rotate
from models.DPI.attention.kernels.tiles import Tiling
from models.DPI.methods import build_method
from models.DPI.planning import Padding, make_plan
from tests.models.DPI import oracle
from tests.models.DPI.attention.kernels.compiling import _Compiler

KERNELS = ((backward, "delta_kernel"), (backward, "query_kernel"), (backward, "key_kernel"), (rotate, "rotate_kernel"))


def compile_case(
    method: str,
    params: dict[str, Any],
    head_dim: int,
    softcap: float | None = None,
    tiles: list[list[int]] | None = None,
) -> list[dict[str, Any]]:
    """Every kernel that gradients of 8 query heads and 2 key heads on 300 keys launch, W = 64."""
    found: list[dict[str, Any]] = []
    originals = [getattr(module, name) for module, name in KERNELS]
    for (module, name), kernel in zip(KERNELS, originals, strict=True):
        setattr(module, name, _Compiler(kernel, HOPPER, found))
    plan = make_plan(build_method(method, params, 64), oracle.rope(64, head_dim), Padding(None, 0, 300), seed=0)
    q = torch.zeros(1, 8, 300, head_dim, dtype=torch.bfloat16)
    k = torch.zeros(1, 2, 300, head_dim, dtype=torch.bfloat16)
    chosen = None if tiles is None else backward.Tilings(*(Tiling(*one) for one in tiles))
    delta = backward.delta_of(q, q)
    lse = torch.zeros_like(delta)
    backward.gradients(q, k, k, lse, delta, q, plan.rows[0], scaling=1.0, softcap=softcap, tiles=chosen)
    for (module, name), kernel in zip(KERNELS, originals, strict=True):
        setattr(module, name, kernel)
    return found


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        seen = {json.dumps(one) for one in compile_case(*case)}
        sys.stdout.write(json.dumps([json.loads(one) for one in sorted(seen)]) + "\n")
