"""Attention on a paged cache made by hand, against the oracle on contiguous keys. It needs no vLLM."""

import pytest
import torch
from torch import Tensor
from vllm_gali import paged

from models.DPI.attention import reference
from models.DPI.methods import Rope, build_method
from models.DPI.methods.base import frequencies_of

WINDOW, HEADS, KV_HEADS, HEAD_DIM = 61, 6, 2, 24
ROPE = Rope(frequencies_of(5000.0, HEAD_DIM), WINDOW, 5000.0)
METHODS = [
    ("dpi", {"chunk_coe": 1, "local_window": 23}),
    ("repro_se", {"group_size": 9, "window_size": 17}),
    ("repro_yarn", {"factor": 8.0}),
    ("streaming_llm", {"sinks": 3, "window_size": 29}),
]
# (tokens of a request, those of this step): prefill whole and in pieces, decoding, within the window and beyond, and
# one request that is not in this step.
REQUESTS = [(50, 50), (203, 64), (311, 1), (17, 1), (160, 0), (77, 77), (128, 5)]


def slots_of(blocks: Tensor, first: int, last: int, block_size: int) -> Tensor:
    tokens = torch.arange(first, last)
    return blocks[tokens // block_size].long() * block_size + tokens % block_size


@pytest.mark.parametrize(("name", "params"), METHODS)
@pytest.mark.parametrize("block_size", [16, 48])
def test_gather_is_the_oracle(name: str, params: dict[str, object], block_size: int) -> None:
    torch.manual_seed(1)
    method = build_method(name, params, WINDOW)
    most = -(-max(length for length, _ in REQUESTS) // block_size)
    order = torch.randperm(most * len(REQUESTS) + 3)
    table = order[: most * len(REQUESTS)].reshape(len(REQUESTS), most).int()
    cache = torch.full((len(order), KV_HEADS, block_size, 2 * HEAD_DIM), float("nan"))
    queries, expected, segments = [], [], []
    for (length, new), blocks in zip(REQUESTS, table, strict=True):
        key, value = torch.randn(2, length, KV_HEADS, HEAD_DIM)
        query = torch.randn(new, HEADS, HEAD_DIM)
        for first in range(0, length, 37):  # written piece by piece, as prompts are
            at = slice(first, min(first + 37, length))
            paged.write(key[at], value[at], cache, slots_of(blocks, at.start, at.stop, block_size))
        bands = method.segments(ROPE, length - new, length) if new else []
        q, k, v = (x.double().transpose(0, 1)[None] for x in (query, key, value))
        if new:
            expected.append(reference.attend(q, k, v, bands, scaling=0.3)[0][0].transpose(0, 1))
        queries.append(query)
        segments.append(bands)
    counts = torch.tensor([new for _, new in REQUESTS])
    starts = [0, *counts.cumsum(0).tolist()]
    batch = paged.Batch(starts, [length for length, _ in REQUESTS], table, segments)
    padding = 4
    out = torch.full((starts[-1] + padding, HEADS, HEAD_DIM), float("nan"))
    paged.gather(torch.cat([*queries, torch.zeros(padding, HEADS, HEAD_DIM)]), cache, batch, 0.3, out)
    assert (out[:-padding].double() - torch.cat(expected)).abs().max() < 1e-5
    assert out[-padding:].isnan().all(), "what no request owns is left alone"


def test_padding_is_not_written() -> None:
    cache = torch.zeros(3, KV_HEADS, 16, 2 * HEAD_DIM)
    key, value = torch.ones(5, KV_HEADS, HEAD_DIM), torch.full((5, KV_HEADS, HEAD_DIM), 2.0)
    paged.write(key, value, cache, torch.tensor([20, -1, 40, -1]))
    written = cache.abs().sum((1, 3)).flatten().nonzero().flatten().tolist()
    assert written == [20, 40]
    assert (cache[1, :, 4, :HEAD_DIM] == 1).all()
    assert (cache[1, :, 4, HEAD_DIM:] == 2).all()
