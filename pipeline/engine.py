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
            **arguments,
        )
        new = output[0, len(ids) :]
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        return Generation(str(text), len(ids), len(new))

    @override
    def token_losses(self, input_ids: Sequence[int], slice_tokens: int) -> Tensor:
        ids = torch.tensor([list(input_ids)], device=self.model.device)  # (1, T)
        return token_losses(self.model, ids, slice_tokens)[0]


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a text: the tokenizer's, the generation configuration's, and Llama-3's end of turn."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = configured if isinstance(configured, list) else [configured]
    found = [tokenizer.eos_token_id, *found, tokenizer.get_vocab().get("<|eot_id|>")]
    return list(dict.fromkeys(token for token in found if token is not None))
