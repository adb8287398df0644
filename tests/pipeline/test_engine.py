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
