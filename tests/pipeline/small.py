"""Configurations, a tokenizer and a model small enough for tests of the pipeline."""

import re
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.config import ExperimentConfig, build_config
from tasks import needle_prompts as prompts

WORDS = " ".join(
    (
        prompts.TASK_DESCRIPTION,
        prompts.GARBAGE,
        prompts.PASSKEY_LINE.format(key=0),
        prompts.PASSKEY_QUESTION,
        "0 1 2 3 4 5 6 7 8 9",
    )
)


def config(**keys: object) -> ExperimentConfig:
    """A valid configuration with some keys changed."""
    base = {"model": "m", "exp_name": "some-4k-to-8k", "method": "repro_original", "task": "needle", "max_pe": 8192}
    return build_config({**base, **keys}, "small")


OLD_OPTIONS: dict[str, object] = {
    "max_pe": 8192, "ori_max_position_embeddings": None, "data_dir": None, "seed": 42, "system_prompt": None,
    "chat": "auto", "max_new_tokens": None, "stride": 2000, "step": 1024, "times": 20, "min_k": 1.0, "max_k": None,
    "gap": 4.0, "haystack": "passkey", "needle": "auto", "lengths": [], "depths": 16, "n_garbage": None,
}  # fmt: skip
"""Run records of version 0.1 hold every benchmark's keys, whichever it is."""


def old_run_config(**keys: object) -> dict[str, object]:
    """What `config` makes, as a run record of version 0.1 has it."""
    return {
        "model": "m", "exp_name": "some-4k-to-8k", "method": "repro_original", "params": {}, "task": "needle",
        "test": False, "tasks": [], "limit": None, **OLD_OPTIONS, "dtype": None, "device": None, "attn_impl": "auto",
        "device_map": None, "tp_plan": None, **keys,
    }  # fmt: skip


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word or punctuation mark, with a start token."""
    words = list(dict.fromkeys(re.findall(r"\w+|[^\w\s]", WORDS)))
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def tiny_model(window: int = 64) -> LlamaForCausalLM:
    """A random Llama with the vocabulary of `word_tokenizer`."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(word_tokenizer()),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=window,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            initializer_range=0.3,
        )
    )
    model.eval()
    return model


def save_model(folder: Path) -> Path:
    """A folder that `from_pretrained` loads."""
    tiny_model().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder
