import itertools

import pytest
from transformers import LlamaConfig

from pipeline.dry_run import MOST_PROMPTS, estimate_memory, quantiles, sample
from tests.pipeline.small import tiny_model


def test_memory_estimate_against_a_hand_count() -> None:
    model = tiny_model()
    estimate = estimate_memory(model.config, tokens=100, bytes_per_number=2)
    assert estimate.weights == 2 * sum(p.numel() for p in model.parameters())
    assert estimate.cache == 2 * 2 * (2 * 2 * 8 * 100)  # layers × (key, value) × heads × head_dim × tokens
    assert estimate.total == estimate.weights + estimate.cache + estimate.activations


def test_memory_of_llama3_8b_is_about_known() -> None:
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    estimate = estimate_memory(config, 32768, 2)
    assert estimate.weights == pytest.approx(16.06e9, rel=0.01)
    assert estimate.cache == 4 * 2**30


def test_sample_takes_all_or_an_even_share_with_both_ends() -> None:
    assert sample(list(range(5))) == [0, 1, 2, 3, 4]
    taken = sample(list(range(1000)))
    assert len(taken) == len(set(taken)) == MOST_PROMPTS
    assert taken[0] == 0
    assert taken[-1] == 999
    gaps = [b - a for a, b in itertools.pairwise(taken)]
    assert max(gaps) - min(gaps) <= 1


def test_quantiles() -> None:
    assert quantiles([5]) == [5] * 5
    assert quantiles([40, 10, 30, 20, 0]) == [0, 10, 20, 30, 40]
