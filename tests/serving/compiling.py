"""Compile what the kernels for the paged cache would run on a GPU, without one; as a program, without Triton's
interpreter. Argument: JSON, a list of the arguments of `compile_case`. A line of JSON for each, as
`tests.models.DPI.attention.kernels.compiling` prints them. `serving` must be on PYTHONPATH.
"""

import json
import sys
from typing import Any

import torch
from vllm_gali import cuda, decode, paged, pages

from models.DPI.attention.cards import HOPPER
from models.DPI.methods import Rope, build_method
from models.DPI.methods.base import frequencies_of
from tests.models.DPI.attention.kernels.compiling import _Compiler

KERNELS = ((decode, "decode_pages_kernel"), (pages, "read_kernel"), (pages, "write_kernel"))


def compile_case(method: str, params: dict[str, Any], head_dim: int, page: int) -> list[dict[str, Any]]:
    """The plug-in's kernels for a request of 300 keys: 8 query heads, 2 key heads, W = 64."""
    found: list[dict[str, Any]] = []
    originals = [getattr(module, name) for module, name in KERNELS]
    for (module, name), kernel in zip(KERNELS, originals, strict=True):
        setattr(module, name, _Compiler(kernel, HOPPER, found))
    rope = Rope(frequencies_of(10_000.0, head_dim), 64, 10_000.0)
    built = build_method(method, params, 64)
    query = torch.zeros(1, 8, head_dim, dtype=torch.bfloat16)
    cache = torch.zeros(9, 2, page, 2 * head_dim, dtype=torch.bfloat16)
    table = torch.zeros(2, 64, dtype=torch.int32)
    cuda.attend(query, cache, paged.Batch([0, 1], [300], table, [built.segments(rope, 299, 300)]), 1.0, query)
    tables = torch.zeros(2, 4, dtype=torch.int64)
    rotated, values = cache.new_empty(2, 2, 300, head_dim), cache.new_empty(2, 300, head_dim)
    pages.read(cache, table[0], tables, rotated, values, 0, 300, True)
    pages.write(query, query, cache, torch.zeros(1, dtype=torch.int64))
    for (module, name), kernel in zip(KERNELS, originals, strict=True):
        setattr(module, name, kernel)
    return found


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        seen = {json.dumps(one) for one in compile_case(*case)}
        sys.stdout.write(json.dumps([json.loads(one) for one in sorted(seen)]) + "\n")
