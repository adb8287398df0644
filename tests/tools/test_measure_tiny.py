"""What the card's table is made of: prompts, accuracy and perplexity, against counting by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from models.DPI.dpi import get_model_and_tokenizer
from models.DPI.methods.dpi import DPI
from tools.measure_tiny import NEW_TOKENS, main, passkey_accuracy, passkey_prompts, perplexity, text_blocks

TINY = Path(__file__).resolve().parents[2] / "models" / "tiny"
TEXT = "\n\n".join(f"Paragraph {n} tells of a ship that left, and of another that stayed behind." for n in range(300))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TINY)


def test_prompts_have_the_length_and_alternate_between_haystacks(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = passkey_prompts(TEXT, tokenizer, 333, 8)
    for number, (ids, key) in enumerate(prompts):
        assert 333 - 3 <= len(ids) <= 333
        assert ids[0] == tokenizer.bos_token_id
        text = str(tokenizer.decode(ids))
        assert f"The pass key is {key}. Remember it." in text
        assert text.endswith("The pass key is")
        assert ("The grass is green." in text) == (number % 2 == 0) != ("of a ship" in text)
    assert len({key for _, key in prompts}) == 8


class _Copyist:
    """Answers with the key of prompts over texts, and over garbage with another."""

    device = torch.device("cpu")

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def generate(self, ids: torch.Tensor, **options: object) -> torch.Tensor:
        text = str(self.tokenizer.decode(ids[0]))
        key = text.split("The pass key is ")[1].split(".")[0] if "grass" not in text else "1"
        answer = self.tokenizer(f" {key}.", add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert answer.shape[1] < NEW_TOKENS
        return torch.cat([ids, answer], dim=1)


def test_accuracy_is_told_by_haystack(tokenizer: PreTrainedTokenizerBase) -> None:
    measured = passkey_accuracy(_Copyist(tokenizer), tokenizer, TEXT, 300, 7)  # type: ignore[arg-type]
    assert measured == {"prompts": 7, "accuracy": 3 / 7, "accuracy_garbage": 0.0, "accuracy_texts": 1.0}


def test_perplexity_of_a_model_that_knows_half() -> None:
    """A model that gives the next even token all and the next odd token a quarter of the probability."""

    def decoder(input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        """Hidden states that are the logits already."""
        following = input_ids[0].roll(-1)
        share = torch.where(following % 2 == 0, 1.0, 0.25).double()
        logits = torch.full((1, len(following), 50), -1e9, dtype=torch.float64)
        logits[0, torch.arange(len(following)), following] = share.log()
        logits[0, :, 49] = torch.where(share < 1, 0.75, 1e-30).double().log()
        return SimpleNamespace(last_hidden_state=logits)

    head = torch.nn.Linear(50, 50, bias=False, dtype=torch.float64).requires_grad_(False)
    head.weight.copy_(torch.eye(50))
    model = SimpleNamespace(device=torch.device("cpu"), get_decoder=lambda: decoder, get_output_embeddings=lambda: head)
    blocks = torch.arange(1, 25).view(2, 12)
    measured = perplexity(model, SimpleNamespace(bos_token_id=0), blocks, 6)  # type: ignore[arg-type]
    # Each piece scores its first five tokens of six: 1-5, 7-11, ... have three odd ones.
    assert measured["scored_tokens"] == 20
    assert measured["perplexity"] == pytest.approx(math.exp(12 * math.log(4) / 20), rel=1e-5)


def test_blocks_are_the_beginnings_of_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [TEXT, "Short.", TEXT[5:]]
    blocks = text_blocks(texts, tokenizer, 100, 2)
    assert blocks.shape == (4, 100)
    assert TEXT.startswith(str(tokenizer.decode(blocks[:2].flatten())))
    assert TEXT[5:].startswith(str(tokenizer.decode(blocks[2])))


def test_command_measures_both_methods(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(TEXT * 2, encoding="utf-8")
    out = tmp_path / "measured.json"
    main(f"--data {tmp_path} --multiples 2 --prompts 2 --blocks 1 --device cpu --out {out}".split())
    original, gali = json.loads(out.read_text(encoding="utf-8"))
    assert (original["method"], gali["method"]) == ("repro_original", "dpi")
    assert gali["params"] == DPI.params_for(512, 1024)
    assert original["accuracy"] == 0
    assert gali["accuracy"] == 1
    assert gali["perplexity"] < original["perplexity"] / 1.2
    assert out.with_suffix(".md").read_text(encoding="utf-8").count("\n") == 4


def test_the_committed_model_answers_within_its_window() -> None:
    model, tokenizer = get_model_and_tokenizer("tiny", None, "repro_original", {}, device="cpu")
    assert sum(file.stat().st_size for file in TINY.glob("*.safetensors")) < 12_000_000
    assert model.num_parameters() < 6_000_000
    assert len(tokenizer) == 4096
    assert passkey_accuracy(model, tokenizer, TEXT, 512, 4)["accuracy"] == 1
