"""A loaded model as the tasks see it: greedy generation and token losses."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from models.DPI.losses import token_losses
from models.DPI.patches.families import head_dim_of, kv_heads_of
from models.DPI.patches.finite import where_not_finite
from models.DPI.patches.generation import decode_plainly, dynamic_cache, static_cache
from models.DPI.patches.Llama import installed_method, replays_decoding
from pipeline import prefixes
from tasks.base import Engine, Generation, Request

if TYPE_CHECKING:
    from transformers import Cache, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Share of the free memory that a batch may be planned to take. What it takes beyond the plan halves it.
_SHARE = 0.8
# Tokens that a static cache has beyond what a prompt needs, where longer questions may be asked of the same text.
_SPARE = 512


class ModelEngine(Engine):
    """The `tasks.base.Engine` over a transformers model with its tokenizer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """The model goes into evaluation mode, and loses its own generation settings: decoding is plainly greedy."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._end_token_ids = end_token_ids(model, tokenizer)
        self._pad_token_id = self._end_token_ids[0] if self._end_token_ids else 0
        self._set_aside = decode_plainly(model)
        self._shares = False
        self._kept = prefixes.KeptCache()
        if self._set_aside:
            said = ", ".join(f"{name} = {value}" for name, value in self._set_aside.items())
            logger.warning("decoding is plainly greedy; the model's own generation settings are set aside: %s", said)

    def share_prefixes(self, wanted: bool | Literal["auto"]) -> None:
        """Whether prompts that are generated alone share what they begin with; "auto": where rounding is that of fp32.

        Raises ValueError where they cannot.
        """
        self._kept.drop()
        reason = prefixes.why_not(installed_method(self.model), self.model.config)
        if wanted is True and reason is not None:
            raise ValueError(f"share_prefixes = true: {reason}")
        precise = self.model.dtype in (torch.float32, torch.float64)
        self._shares = reason is None and (precise if wanted == "auto" else wanted)

    @override
    def generation_settings(self) -> dict[str, Any]:
        return {
            "do_sample": False,
            "num_beams": 1,
            "eos_token_id": self._end_token_ids,
            "pad_token_id": self._pad_token_id,
            "shares_prefixes": self._shares,
            "set_aside": {name: _json_value(value) for name, value in self._set_aside.items()},
        }

    @override
    def generate(self, requests: Sequence[Request]) -> list[Generation | FloatingPointError]:
        """Rows are padded on the left. Raises `ValueError` for a prompt that is none, and for unequal endings.

        What does not fit into memory beside a cache that is kept, or in one that grows from it, is tried without.
        """
        kept = bool(self._kept)
        try:
            return self._generate(requests)
        except torch.OutOfMemoryError:
            if not kept:
                raise
        self._free()  # not before the error and its frames are gone
        return self._generate(requests)

    @torch.inference_mode()
    def _generate(self, requests: Sequence[Request]) -> list[Generation | FloatingPointError]:
        prompts = [list(request.prompt) for request in requests]
        max_new_tokens, stop_token_ids, min_new_tokens = requests[0].ending
        if any(request.ending != requests[0].ending for request in requests):
            raise ValueError("requests of one batch must be equal in all but their prompts")
        for prompt in prompts:
            self._check_prompt(prompt)
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        device = self.model.device
        input_ids = torch.tensor(
            [[self._pad_token_id] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)], device=device
        )  # (B, T)
        attention_mask = (torch.arange(longest) >= torch.tensor(padding)[:, None]).long().to(device)
        arguments: dict[str, Any] = {"min_new_tokens": min_new_tokens} if min_new_tokens else {}
        cache, keeps = self._cache_for(prompts, longest + max_new_tokens, static=replays_decoding(self.model, longest))
        if cache is not None:
            arguments["past_key_values"] = cache
        ends = sorted({*self._end_token_ids, *stop_token_ids})
        watch = FiniteLogits()
        output = self.model.generate(
            input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=ends,
            pad_token_id=self._pad_token_id,
            logits_processor=[watch],
            **arguments,
        )
        rows = [until_end(row, ends) for row in output[:, longest:].tolist()]
        steps = watch.first_wrong([len(row) for row in rows])
        if cache is not None and keeps and steps == [None]:
            self._kept.keep(prompts[0] + rows[0], cache)
        errors = [
            None if step is None else self._not_finite(prompt + row[: step[0]], *step)
            for step, row, prompt in zip(steps, rows, prompts, strict=True)
        ]
        return [
            error or Generation(str(self.tokenizer.decode(row, skip_special_tokens=True)), len(prompt), len(row))
            for error, row, prompt in zip(errors, rows, prompts, strict=True)
        ]

    def _cache_for(self, prompts: list[list[int]], room: int, *, static: bool) -> tuple[Cache | None, bool]:
        """The cache that a generation begins with, None if it may make its own, and whether it is kept afterwards."""
        shares = self._shares and len(prompts) == 1
        keeps = shares and not self._kept.passes_over(prompts[0])
        if not shares:
            self._kept.drop()
        if keeps:
            cache = self._kept.take(prompts[0], room, static=static)
            if cache is not None:
                return cache, True
        if static:
            return static_cache(self.model, room + (_SPARE if keeps else 0)), keeps
        return (dynamic_cache(self.model) if keeps else None), keeps

    def _free(self) -> None:
        self._kept.drop()
        gc.collect()
        torch.cuda.empty_cache()

    @override
    def token_losses(self, input_ids: Sequence[int], slice_tokens: int) -> Tensor:
        self._kept.drop()
        ids = torch.tensor([list(input_ids)], device=self.model.device)  # (1, T)
        losses = token_losses(self.model, ids, slice_tokens)[0]
        wrong = (~losses.isfinite()).nonzero()
        if len(wrong):
            first = int(wrong[0])  # of token 1, 2, ...
            raise FloatingPointError(
                f"the loss of the token at position {first + 1} is {float(losses[first])} ({len(wrong)} of"
                f" {len(losses)} losses are not finite); {where_not_finite(self.model, input_ids, first)}"
            )
        return losses

    def _not_finite(self, ids: Sequence[int], step: int, largest: float) -> FloatingPointError:
        """ids: of the prompt and the new tokens before the one whose logits are not finite."""
        return FloatingPointError(
            f"the logits for the token at position {len(ids)} (new token {step}) are not finite: the largest is"
            f" {largest}; {where_not_finite(self.model, ids)}"
        )

    @override
    def batch_tokens(self) -> int | None:
        self._kept.drop()
        devices = {parameter.device for parameter in self.model.parameters()}
        if {device.type for device in devices} != {"cuda"}:
            return None
        cache, activations = bytes_per_token(self.model.config, self.model.dtype.itemsize)
        return int(_SHARE * min(map(_free_bytes, devices)) / (cache / len(devices) + activations))

    def _check_prompt(self, ids: Sequence[int]) -> None:
        """On a GPU an id outside the vocabulary would end not this record but the process's use of the GPU."""
        if not ids:
            raise ValueError("the prompt has no tokens")
        size = self.model.config.get_text_config().vocab_size
        if wrong := [token for token in (min(ids), max(ids)) if not 0 <= token < size]:
            raise ValueError(
                f"the prompt has the token id {wrong[0]}, and the model's vocabulary has {size}; model and tokenizer "
                "do not belong together"
            )


class FiniteLogits:
    """A logits processor of transformers that watches the logits of new tokens, row by row; it changes none.

    Single logits of -inf, which hold a token back, are in order. The largest one must be finite.
    """

    def __init__(self) -> None:
        """Nothing is seen yet."""
        self._largest: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Keep the largest logit of each row, on its device: to read it here would stop the GPU at every token."""
        self._largest.append(scores.amax(-1))  # (B,); NaN if any is NaN
        return scores

    def first_wrong(self, new_tokens: Sequence[int]) -> list[tuple[int, float] | None]:
        """For each row its first new token whose logits are not finite, with the largest of them, or None.

        new_tokens: of each row; what a row is given after its end does not count.
        """
        largest = torch.stack(self._largest).float().cpu()  # (steps, B)
        found: list[tuple[int, float] | None] = []
        for row, new in enumerate(new_tokens):
            wrong = (~largest[:new, row].isfinite()).nonzero()
            found.append((int(wrong[0]), float(largest[int(wrong[0]), row])) if len(wrong) else None)
        return found


def until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """A row's tokens up to the first that ends it; what follows is padding."""
    return tokens[: next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))]


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a text, see `ends_of`."""
    return ends_of(model.generation_config, tokenizer)


def ends_of(generation_config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a text: the tokenizer's, the generation configuration's, and Llama-3's end of turn."""
    configured = generation_config.eos_token_id if generation_config is not None else None
    found = configured if isinstance(configured, list) else [configured]
    found = [tokenizer.eos_token_id, *found, tokenizer.get_vocab().get("<|eot_id|>")]
    return list(dict.fromkeys(token for token in found if token is not None))


def bytes_per_token(config: PreTrainedConfig, bytes_per_number: int) -> tuple[int, int]:
    """Memory of a token in the cache, and of the largest layer's intermediate values; attention itself is small."""
    cache = 2 * config.num_hidden_layers * kv_heads_of(config) * head_dim_of(config)
    # The MLP's gate, up and product, and the residual with its normalised copy.
    activations = 3 * config.intermediate_size + 2 * config.hidden_size
    return cache * bytes_per_number, activations * bytes_per_number


def _json_value(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else repr(value)


def _free_bytes(device: torch.device) -> int:
    """What other programs leave of a GPU's memory, and this one holds without use."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held
