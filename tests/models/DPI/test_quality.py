"""What the paper claims, on a real model: past its window the original breaks, and GALI goes on.

The embedded model (window 512) reads Python's help topics and the needle task's prompts. Besides quality, its logits
are compared with the oracle's, so that a position off by one shows in a model whose attention means something.
"""

from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.DPI.attention import api
from models.DPI.dpi import get_model_and_tokenizer
from models.DPI.methods import build_method
from models.DPI.patches.Llama import install, uninstall
from tasks.needle_prompts import draw_passkey, fit_prompt, passkey_needle
from tests.conftest import TINY
from tests.models.DPI import oracle

WINDOW = 512
GALI: dict[str, Any] = {"chunk_coe": 1, "local_window": 256}
# For the comparison with the oracle, which writes out every pair: a window of 61 tokens, and 149 tokens.
SHORT_WINDOW = 61
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("dpi", {"chunk_coe": 1, "local_window": 23}),
    ("dpi", {"chunk_coe": 35, "local_window": 7}),
    ("dpi", {"chunk_coe": 0.2, "local_window": 30, "appro_attn": False}),
    ("repro_se", {"group_size": 3, "window_size": 17}),
    ("repro_chunkllama", {}),
    ("repro_ntk", {"factor": 2.0}),
    ("repro_dynamic_ntk", {"factor": 2.0}),
    ("repro_yarn", {"factor": 2.0}),
]


@pytest.fixture(scope="module")
def tiny() -> tuple[PreTrainedModel, Any]:
    return get_model_and_tokenizer(str(TINY), None, "repro_original", {}, device="cpu")


@pytest.fixture(scope="module")
def text(tiny: tuple[PreTrainedModel, Any]) -> Tensor:
    """(1, 2048) tokens of prose."""
    _, tokenizer = tiny
    prose = "\n".join(topics[name] for name in ("class", "objects", "execmodel", "import"))
    return tokenizer(prose, return_tensors="pt", verbose=False).input_ids[:, : 4 * WINDOW]


def losses(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Loss of each token but the first, (N - 1,)."""
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def test_original_breaks_past_the_window_and_gali_does_not(tiny: tuple[PreTrainedModel, Any], text: Tensor) -> None:
    model, _ = tiny
    last = slice(-WINDOW // 2, None)  # the last 256 tokens of the text
    uninstall(model)
    within = losses(model, text[:, -WINDOW:])[last].mean().item()  # the same tokens with only a window before them
    original = losses(model, text)[last].mean().item()
    install(model, build_method("dpi", GALI), WINDOW)
    gali = losses(model, text)[last].mean().item()
    assert original > within + 1.0
    assert gali < within + 0.03


@pytest.mark.parametrize("length", [500, 1000, 3000])
def test_gali_finds_the_key_where_the_original_is_lost(tiny: tuple[PreTrainedModel, Any], length: int) -> None:
    model, tokenizer = tiny
    found = {"repro_original": 0, "dpi": 0}
    for depth in (0.2, 0.7):
        key = draw_passkey(f"quality/{length}/{depth}")
        ids = torch.tensor([fit_prompt(length, depth, passkey_needle(key), None, lambda t: tokenizer(t)["input_ids"])])
        for name, params in (("repro_original", {}), ("dpi", GALI)):
            install(model, build_method(name, params), WINDOW)
            answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
            found[name] += key in tokenizer.decode(answer[0, ids.shape[1] :])
    assert found == {"repro_original": 2 if length <= WINDOW else 0, "dpi": 2}


@pytest.mark.parametrize(("name", "params"), METHODS)
@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_logits_are_the_oracles(
    tiny: tuple[PreTrainedModel, Any],
    text: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    params: dict[str, Any],
    impl: str,
) -> None:
    model, _ = tiny
    ids = text[:, 100:249]
    method = build_method(name, params)
    install(model, method, SHORT_WINDOW, attn_impl=impl)
    with torch.no_grad():
        found = model(ids).logits
    terms = oracle.terms(method, SHORT_WINDOW, 0, ids.shape[1])
    inv_freq = oracle.inv_freq_of(method.segments(oracle.rope(SHORT_WINDOW, 64), 0, ids.shape[1]))

    def attend(q: Tensor, k: Tensor, v: Tensor, plan: Any, *, scaling: float, **_: Any) -> tuple[Tensor, None]:
        return oracle.attention(q, k, v, inv_freq, terms, scaling).to(q.dtype), None

    monkeypatch.setattr(api, "attend", attend)
    with torch.no_grad():
        expected = model(ids).logits
    assert (found - expected).abs().max() < 2e-3
