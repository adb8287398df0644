from collections.abc import Sequence

import pytest
import torch
from transformers import LlamaForCausalLM

from pipeline.engine import ModelEngine, end_token_ids
from tests.pipeline.small import tiny_model, word_tokenizer

PROMPT = "The grass is green . The sky is blue ."


@pytest.fixture
def engine() -> ModelEngine:
    return ModelEngine(tiny_model(), word_tokenizer())


def greedy(model: LlamaForCausalLM, ids: Sequence[int], count: int, stop: set[int]) -> list[int]:
    """Greedy decoding by hand: a whole forward pass a token."""
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stop:
            break
    return ids


def test_generation_is_greedy_and_counted(engine: ModelEngine) -> None:
    ids = engine.tokenizer(PROMPT)["input_ids"]
    expected = greedy(engine.model, ids, 7, stop={2})
    generation = engine.generate(PROMPT, 7)
    assert generation.text == engine.tokenizer.decode(expected[len(ids) :], skip_special_tokens=True)
    assert (generation.prompt_tokens, generation.total_tokens) == (len(ids), len(expected))
    assert engine.generate(ids, 7) == generation


def test_stop_tokens_end_the_text(engine: ModelEngine) -> None:
    ids = engine.tokenizer(PROMPT)["input_ids"]
    third = greedy(engine.model, ids, 3, stop=set())[-1]
    expected = greedy(engine.model, ids, 20, stop={third, 2})
    generation = engine.generate(ids, 20, stop_token_ids=[third])
    assert generation.total_tokens == len(expected) < len(ids) + 20


def test_min_new_tokens_hold_the_end_back(engine: ModelEngine) -> None:
    ids = engine.tokenizer(PROMPT)["input_ids"]
    first = greedy(engine.model, ids, 1, stop=set())[-1]
    assert engine.generate(ids, 5, stop_token_ids=[first]).new_tokens == 1
    assert engine.generate(ids, 5, stop_token_ids=[first], min_new_tokens=3).new_tokens >= 3


def test_losses_have_one_entry_less_than_tokens(engine: ModelEngine) -> None:
    losses = engine.token_losses(engine.tokenizer(PROMPT)["input_ids"], 4)
    assert losses.shape == (len(engine.tokenizer(PROMPT)["input_ids"]) - 1,)
    assert losses.dtype == torch.float32
    assert losses.device.type == "cpu"


def test_end_tokens_come_from_tokenizer_and_generation_configuration() -> None:
    model, tokenizer = tiny_model(), word_tokenizer()
    model.generation_config.eos_token_id = [5, 2]
    assert end_token_ids(model, tokenizer) == [2, 5]
    model.generation_config.eos_token_id = None
    tokenizer.add_tokens(["<|eot_id|>"])
    assert end_token_ids(model, tokenizer) == [2, len(tokenizer) - 1]


def spoiled(token: int) -> ModelEngine:
    """An engine whose model gives NaN from the first place on where `token` is read."""
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    return ModelEngine(model, word_tokenizer())


def test_losses_that_are_not_finite_are_an_error_with_the_first_position(
    engine: ModelEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = engine.tokenizer(PROMPT)["input_ids"]
    assert torch.isfinite(engine.token_losses(ids, 4)).all()
    with pytest.raises(FloatingPointError, match="is nan"):
        spoiled(ids[2]).token_losses(ids, 4)
    losses = torch.ones(1, 9)  # of tokens 1 to 9
    losses[0, 3], losses[0, 6] = torch.inf, torch.nan
    monkeypatch.setattr("pipeline.engine.token_losses", lambda *_: losses)
    with pytest.raises(FloatingPointError, match=r"token at position 4 is inf \(2 of 9 losses are not finite\)"):
        engine.token_losses(ids, 4)


def test_logits_that_are_not_finite_are_an_error_with_the_first_position(engine: ModelEngine) -> None:
    ids = engine.tokenizer(PROMPT)["input_ids"]
    with pytest.raises(FloatingPointError, match=rf"position {len(ids)} \(new token 0\) are not finite: .* nan"):
        spoiled(ids[2]).generate(ids, 4)
    first, second = greedy(engine.model, ids, 2, stop=set())[-2:]
    assert first not in ids
    assert first != second
    with pytest.raises(FloatingPointError, match=rf"position {len(ids) + 1} \(new token 1\)"):
        spoiled(first).generate(ids, 4, min_new_tokens=4)


def test_logits_that_are_infinite_are_an_error(engine: ModelEngine) -> None:
    with torch.no_grad():
        engine.model.get_output_embeddings().weight[5] = float("inf")
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.generate(PROMPT, 2)
