"""Train the embedded model: a Llama of 5.5 M parameters with a window of 512 tokens, on a folder of plain text.

    python -m tools.train_tiny --data books/train --out models/tiny

It learns ordinary text and, mixed in, passkey prompts in the needle task's wording, none of them longer than the
window; it meets no rotary position but the integers below the window. It runs for minutes on a GPU with bf16
autocast and `torch.compile`, and on a CPU (in fp32, without compilation) for tests. The folder that it writes is what
`from_pretrained` reads: weights in bf16 as safetensors, configuration, tokenizer, and `training_log.jsonl`, whose
first line is the recipe.

Seeds are fixed: batches are the same in every run, the rest up to the order of sums on the device.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.tiny_data import Batches, Corpus, read_texts, train_tokenizer

LOG_NAME = "training_log.jsonl"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is learnt. Every field is an option of the command line."""

    vocab_size: int = 4096
    window: int = 512
    layers: int = 6
    hidden_size: int = 256
    intermediate_size: int = 704
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10_000.0
    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 3e-3
    warmup_steps: int = 200
    weight_decay: float = 0.01
    passkey_fraction: float = 0.4
    answer_weight: float = 8.0
    query_scale: float = 1.2
    seed: int = 1


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A randomly initialised Llama with tied embeddings, fp32, on the CPU."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.window,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(config)


class WeightedLoss(nn.Module):
    """The training loss of a model: cross-entropy in which the answers of passkey prompts weigh `answer_weight`."""

    def __init__(self, model: LlamaForCausalLM, answer_weight: float) -> None:
        """Other tokens than those of answers weigh 1."""
        super().__init__()
        self.model, self.answer_weight = model, answer_weight

    def forward(self, tokens: Tensor, is_answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For tokens (B, window + 1) and is_answer (B, window): the weighted loss, and the mean losses (nats) of
        answers and of all else."""
        logits = self.model(input_ids=tokens[:, :-1], use_cache=False).logits  # (B, window, V)
        losses = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
        answers = is_answer.flatten().float()
        others = 1.0 - answers
        weights = self.answer_weight * answers + others
        loss = (losses * weights).sum() / weights.sum()
        answer_loss = (losses * answers).sum() / answers.sum().clamp(min=1)
        text_loss = (losses * others).sum() / others.sum()
        return loss, answer_loss.detach(), text_loss.detach()


def build_optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW that decays matrices only, with a linear warm-up and a cosine down to zero."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=device.type == "cuda")

    def factor(step: int) -> float:
        if step < recipe.warmup_steps:
            return (step + 1) / recipe.warmup_steps
        share = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))

    return optimizer, LambdaLR(optimizer, factor)


def train(
    model: LlamaForCausalLM,
    batches: Batches,
    recipe: Recipe,
    *,
    device: torch.device,
    compiled: bool = True,
    workers: int = 0,
    log_every: int = 25,
) -> Iterator[dict[str, float | int]]:
    """Train `model` in place, moved to `device`. Yields a log record every `log_every` steps and after the last."""
    objective: nn.Module = WeightedLoss(model, recipe.answer_weight).to(device).train()
    if compiled:
        objective = torch.compile(objective)  # type: ignore[assignment]
    optimizer, schedule = build_optimizer(model, recipe, device)
    on_gpu = device.type == "cuda"
    torch.set_float32_matmul_precision("high")
    loader = DataLoader(
        batches, batch_size=None, num_workers=workers, pin_memory=on_gpu, worker_init_fn=_quiet_tokenizer
    )
    started = time.perf_counter()
    with tqdm(total=recipe.steps * recipe.batch_size * recipe.window, unit="tok", unit_scale=True) as progress:
        for step, (tokens, is_answer) in enumerate(loader, start=1):
            tokens = tokens.to(device, non_blocking=True)
            is_answer = is_answer.to(device, non_blocking=True)
            learning_rate = schedule.get_last_lr()[0]
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                loss, answer_loss, text_loss = objective(tokens, is_answer)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            progress.update(recipe.batch_size * recipe.window)
            if step % log_every == 0 or step == recipe.steps:
                record = {
                    "step": step,
                    "loss": loss.item(),
                    "text_loss": text_loss.item(),
                    "answer_loss": answer_loss.item(),
                    "gradient_norm": norm.item(),
                    "learning_rate": learning_rate,
                    "seconds": round(time.perf_counter() - started, 2),
                }
                progress.set_postfix(text=f"{record['text_loss']:.3f}", answer=f"{record['answer_loss']:.3f}")
                yield record


@torch.no_grad()
def sharpen(model: LlamaForCausalLM, query_scale: float) -> None:
    """Multiply all query weights, and so every attention logit, by `query_scale`.

    The margins that training leaves between logits are what 512 keys need. Among sixteen times as many, the share of
    a token that stands out is smaller by as much; larger margins keep it, at the cost of a few percent of perplexity.
    """
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.mul_(query_scale)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights (bf16), configuration, generation defaults (greedy) and tokenizer."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _quiet_tokenizer(worker: int) -> None:
    """A tokenizer in a forked worker must not use threads, and warns unless told so."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Recipe]:
    """The command line, and the recipe in it. Exits with status 2 for one that makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of *.txt files to learn from")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile (never used on a CPU)")
    parser.add_argument("--workers", type=int, default=max(0, min(12, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--log-every", type=int, default=25, help="steps between two lines of the log")
    group = parser.add_argument_group("recipe")
    for field in fields(Recipe):
        kind = type(field.default)
        group.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, metavar=kind.__name__)
    args = parser.parse_args(argv)
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    if recipe.steps < 1 or recipe.batch_size < 1 or args.log_every < 1:
        parser.error("--steps, --batch-size and --log-every must be at least 1")
    if not 0 <= recipe.passkey_fraction <= 1:
        parser.error(f"--passkey-fraction is {recipe.passkey_fraction}; it must lie in [0, 1]")
    return args, recipe


def main(argv: Sequence[str] | None = None) -> None:
    """Train, log and save."""
    args, recipe = parse(argv)
    device = torch.device(args.device)
    texts = read_texts(args.data)
    tokenizer = train_tokenizer(texts, recipe.vocab_size)
    batches = Batches(
        Corpus.encode(texts, tokenizer.backend_tokenizer),
        tokenizer.backend_tokenizer,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        window=recipe.window,
        passkey_fraction=recipe.passkey_fraction,
        seed=recipe.seed,
    )
    model = build_model(recipe, tokenizer)
    head = {
        **asdict(recipe),
        "parameters": model.num_parameters(),
        "corpus_tokens": len(batches.corpus.tokens),
        "device": _device_name(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    records = train(
        model,
        batches,
        recipe,
        device=device,
        compiled=device.type == "cuda" and not args.no_compile,
        workers=args.workers,
        log_every=args.log_every,
    )
    with (args.out / LOG_NAME).open("w", encoding="utf-8") as log:
        for record in itertools.chain([head], records):
            log.write(json.dumps(record) + "\n")
            log.flush()
    sharpen(model, recipe.query_scale)
    save(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
