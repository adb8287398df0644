"""A loaded model as the tasks see it: greedy generation and token losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from models.DPI.losses import token_losses
from models.DPI.patches.Llama import replays_decoding
from tasks.base import Engine, Generation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelEngine(Engine):
    """The `tasks.base.Engine` over a transformers model with its tokenizer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """The model goes into evaluation mode."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._end_token_ids = end_token_ids(model, tokenizer)

    @override
    @torch.inference_mode()
    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int,
        *,
        stop_token_ids: Sequence[int] = (),
        min_new_tokens: int = 0,
    ) -> Generation:
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        input_ids = torch.tensor([ids], device=self.model.device)  # (1, T)
        arguments: dict[str, Any] = {"min_new_tokens": min_new_tokens} if min_new_tokens else {}
        if replays_decoding(self.model, len(ids)):
            arguments["cache_implementation"] = "static"
        watch = FiniteLogits()
        output = self.model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            # Sampling defaults of a model's generation_config would only warn.
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=sorted({*self._end_token_ids, *stop_token_ids}),
            pad_token_id=self._end_token_ids[0] if self._end_token_ids else 0,
            logits_processor=[watch],
            **arguments,
        )
        watch.check(len(ids))
        new = output[0, len(ids) :]
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        return Generation(str(text), len(ids), len(new))

    @override
    def token_losses(self, input_ids: Sequence[int], slice_tokens: int) -> Tensor:
        ids = torch.tensor([list(input_ids)], device=self.model.device)  # (1, T)
        losses = token_losses(self.model, ids, slice_tokens)[0]
        check_losses(losses)
        return losses


class FiniteLogits:
    """A logits processor of transformers that watches the logits of new tokens, for a batch of one; it changes none.

    Single logits of -inf, which hold a token back, are in order. The largest one must be finite.
    """

    def __init__(self) -> None:
        """Nothing is seen yet."""
        self._largest: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Keep the largest logit, on its device: to read it here would stop the GPU at every token."""
        self._largest.append(scores.amax())  # NaN if any is NaN
        return scores

    def check(self, prompt_tokens: int) -> None:
        """Raise `FloatingPointError` with the position of the first token whose logits are not finite."""
        if not self._largest:
            return
        largest = torch.stack(self._largest)
        wrong = (~largest.isfinite()).nonzero()
        if len(wrong):
            step = int(wrong[0])
            raise FloatingPointError(
                f"the logits for the token at position {prompt_tokens + step} (new token {step}) are not finite:"
                f" the largest is {float(largest[step])}"
            )


def check_losses(losses: Tensor) -> None:
    """Raise `FloatingPointError` with the position of the first loss that is not finite. losses: of tokens 1 …."""
    wrong = (~losses.isfinite()).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise FloatingPointError(
            f"the loss of the token at position {first + 1} is {float(losses[first])}"
            f" ({len(wrong)} of {len(losses)} losses are not finite)"
        )


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a text: the tokenizer's, the generation configuration's, and Llama-3's end of turn."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = configured if isinstance(configured, list) else [configured]
    found = [tokenizer.eos_token_id, *found, tokenizer.get_vocab().get("<|eot_id|>")]
    return list(dict.fromkeys(token for token in found if token is not None))
