"""The architectures that the plug-in serves, as small random models: vLLM's code of each against transformers' here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models.DPI import build_method, installed
from tests.serving.engines import Engine

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

WINDOW = 61
GALI: dict[str, Any] = {"method": "dpi", "params": {"chunk_coe": 1, "local_window": 23}}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "head_dim": 24},
    "mistral": {"sliding_window": None, "head_dim": 24},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False, "head_dim": 40},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_this_repositorys(
    make_engine: Callable[..., Engine], tmp_path: Path, family: str
) -> None:
    config = AutoConfig.for_model(
        family,
        vocab_size=101,
        hidden_size=128,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        initializer_range=0.2,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        bos_token_id=1,
        eos_token_id=None,
        **FAMILIES[family],
    )
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):  # all alike, they could be left out or applied in the wrong place
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(tmp_path)
    prompt = torch.randint(2, 101, (1, 301))
    with torch.inference_mode(), installed(model, build_method(GALI["method"], GALI["params"]), WINDOW):
        scores = model(prompt).logits[0, :-1].log_softmax(-1)
    expected = scores.gather(1, prompt[0, 1:, None])[:, 0].tolist()

    engine = make_engine(
        GALI,
        model=str(tmp_path),
        skip_tokenizer_init=True,
        max_model_len=310,
        max_num_batched_tokens=64,
        block_size=16,
        kv_cache_memory_bytes=64 << 20,
    )
    tokens = prompt[0].tolist()
    output = engine.outputs([tokens], tokens=1, prompt_logprobs=0, detokenize=False)[0]
    found = [entry[token].logprob for token, entry in zip(tokens[1:], output.prompt_logprobs[1:], strict=True)]
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-3
    engine.close()
