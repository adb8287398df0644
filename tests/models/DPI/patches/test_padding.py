"""Large padded batches within the stock attention's reach: row by row, without its mask."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from models.DPI.patches import forward_pass
from tests.models.DPI.helpers import WINDOW, MakeModel, logits, padded, put, tokens

LENGTHS = [WINDOW + 9, 20, WINDOW + 9, 13]


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """The masks that the stock attention gets from now on; every mask counts as large."""
    monkeypatch.setattr(forward_pass, "MOST_MASKED", 0)
    found: list[Tensor | None] = []
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(layer: object, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: object) -> object:
        found.append(mask)
        return stock(layer, q, k, v, mask, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", spy)
    return found


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3", "mixtral"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_is_the_row_alone(make_model: MakeModel, masks: list[Tensor | None], model_type: str, side: str) -> None:
    model = put(make_model(WINDOW, model_type), "repro_original")
    ids, mask = padded(LENGTHS)
    if side == "right":
        ids, mask = ids.flip(1), mask.flip(1)
    together = logits(model, ids, attention_mask=mask)
    assert masks
    assert all(each is None for each in masks)
    for row, length in enumerate(LENGTHS):
        at = slice(-length, None) if side == "left" else slice(0, length)
        torch.testing.assert_close(together[row, at], logits(model, ids[row : row + 1, at])[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("cache", [None, "static"])
def test_generation_is_that_of_the_mask(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, masks: list[Tensor | None], cache: str | None
) -> None:
    model: Any = put(make_model(WINDOW), "repro_original")
    ids, mask = padded(LENGTHS)
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "cache_implementation": cache}
    found = model.generate(ids, **options)
    prefill = [each for each in masks[: 3 * len(model.model.layers)] if each is None]
    assert len(prefill) == 3 * len(model.model.layers), "three spans in each layer"
    masks.clear()
    monkeypatch.setattr(forward_pass, "MOST_MASKED", 1 << 24)
    assert torch.equal(model.generate(ids, **options), found)
    assert all(each is not None for each in masks)


def test_later_pieces_of_a_prompt_keep_the_mask(make_model: MakeModel, masks: list[Tensor | None]) -> None:
    model = put(make_model(WINDOW), "repro_original")
    ids, mask = padded([17, 11])
    whole = logits(model, ids, attention_mask=mask)
    with torch.no_grad():
        cache = model(ids[:, :9], attention_mask=mask[:, :9], use_cache=True).past_key_values
        masks.clear()
        rest = model(ids[:, 9:], attention_mask=mask, past_key_values=cache).logits
    assert all(each is not None for each in masks)
    torch.testing.assert_close(rest[0], whole[0, 9:], rtol=0, atol=2e-5)
    torch.testing.assert_close(rest[1], whole[1, 9:], rtol=0, atol=2e-5)


def test_without_padding_nothing_is_cut(make_model: MakeModel, masks: list[Tensor | None]) -> None:
    model = make_model(WINDOW)
    ids = tokens(3, WINDOW)
    stock = logits(model, ids)
    assert torch.equal(logits(put(model, "repro_original"), ids), stock)
    assert torch.equal(logits(model, ids, attention_mask=torch.ones_like(ids)), stock)
