"""What the tests of models share: random tokens, padded batches, methods on a model, passes in pieces."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.DPI.methods import build_method
from models.DPI.patches.Llama import install

MakeModel = Callable[..., PreTrainedModel]
WINDOW = 32
# Of every kind of test; `test_families.py` has the others.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
ROUNDING = 1e-4  # fp32 logits of size ten
CHUNK_FREE: dict[str, Any] = {"local_window": 7, "chunk_coe": 1}
CHUNKS: dict[str, Any] = {"local_window": 7, "chunk_coe": 11}
NOISY = CHUNK_FREE | {"noise_type": "gaussian", "std_base": 2.0}
PARAMS: dict[str, dict[str, Any]] = {
    "dpi": CHUNK_FREE,
    "repro_se": {"group_size": 3, "window_size": 9},
    "repro_chunkllama": {"local_window": 5},
    "repro_ntk": {"factor": 4.0},
    "repro_dynamic_ntk": {"factor": 4.0},
    "repro_yarn": {"factor": 4.0},
    "repro_original": {},
    "pi": {"factor": 3.5},
    "rerope": {"window_size": 9},
    "leaky_rerope": {"window_size": 9, "factor": 3.5},
    "string": {"shift": 21, "local_window": 3},
    "dpe": {"scales": [4, 2, 7, 3], "window_size": 9},
    "streaming_llm": {"sinks": 3, "window_size": 17},
    "lampe": {"local_window": 5},
    "mrrope": {"factor": 4.0},
    "tailspline": {"factor": 4.0},
    "multi_scale": {"edges": [6, 13, 40], "scales": [2, 3.5, 5]},
}


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random token ids, none of them special."""
    return torch.randint(2, 101, shape, generator=torch.Generator().manual_seed(seed))


def padded(lengths: list[int], side: str = "left") -> tuple[Tensor, Tensor]:
    """Rows of these lengths, zeros elsewhere, and their mask."""
    ids = tokens(len(lengths), max(lengths))
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        real = slice(max(lengths) - length, None) if side == "left" else slice(0, length)
        mask[row, real] = 1
    return ids * mask, mask


def put(
    model: PreTrainedModel,
    name: str = "dpi",
    params: dict[str, Any] | None = None,
    window: int = WINDOW,
    **options: Any,
) -> PreTrainedModel:
    """The model with a method on it, by default with the parameters of `PARAMS`."""
    return install(model, build_method(name, PARAMS[name] if params is None else params, window), window, **options)


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor, **options: Any) -> Tensor:
    """Of one pass, (B, T, vocabulary)."""
    found: Tensor = model(ids, **options).logits
    return found


@torch.no_grad()
def in_pieces(model: PreTrainedModel, ids: Tensor, edges: list[int], mask: Tensor | None = None) -> Tensor:
    """Logits of passes from edge to edge, with a cache, side by side."""
    cache, out = None, []
    for first, last in itertools.pairwise(edges):
        options = {} if mask is None else {"attention_mask": mask[:, :last]}
        step = model(ids[:, first:last], past_key_values=cache, use_cache=True, **options)
        cache = step.past_key_values
        out.append(step.logits)
    return torch.cat(out, dim=1)
