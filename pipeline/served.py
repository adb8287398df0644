"""Models that another program serves: what a configuration asks of it, and continuations that are checked.

Which program, and how it is asked, is a subclass's business (`openai_engine.py`, `vllm_engine.py`). Prompts go as token
ids, so that what is cut is cut here, and continuations come as token ids, so that texts are decoded here. Each says
which model and method gave it (`models.DPI.served`); anything else than what the configuration asks for ends the run.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from models.DPI.served import Served, params_of
from pipeline.client import ServerError
from pipeline.config import ExperimentConfig
from tasks.base import Engine, Generation, Request
from tasks.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from models.DPI.methods import Method
    from pipeline.checks import Start

# All of it is said: what a request leaves out, vLLM's server takes from the model's generation_config.json.
GREEDY: Mapping[str, Any] = {
    "n": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True,
}  # fmt: skip
ANY_BATCH = 1 << 40
"""Tokens that such a program takes at once: it queues what does not fit."""


@dataclass(frozen=True)
class Continuation:
    """What came back for one prompt.

    tokens: new ones, the end token included. logprobs: of each of them; None is what is no number in JSON.
    """

    prompt: Sequence[int]
    tokens: Sequence[int]
    logprobs: Sequence[float | None]


class ServedEngine(Engine):
    """The `tasks.base.Engine` over a program of its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], vocab_size: int) -> None:
        """ends: ids that end a text."""
        self.tokenizer = tokenizer
        self._ends = list(ends)
        self._vocab_size = vocab_size

    @property
    @abstractmethod
    def served(self) -> Served:
        """What the program says of itself."""

    @property
    @abstractmethod
    def most_tokens(self) -> int:
        """Of a prompt and its continuation."""

    @abstractmethod
    def complete(self, prompts: list[list[int]], most: int, least: int, ends: Sequence[int]) -> list[Continuation]:
        """Continue prompts greedily by `least` to `most` tokens, or to one of `ends` and no others; in their order.

        Raises `ServerError` where the program says no, `UserError` where it is gone, or is another one than it was.
        """

    @abstractmethod
    def log_probabilities(self, ids: list[int]) -> Sequence[float | None]:
        """Of tokens 1 … n − 1, each given all before it; None is what is no number in JSON. Raises as `complete`."""

    def close(self) -> None:
        """Let go of what the engine holds."""

    @override
    def generation_settings(self) -> dict[str, Any]:
        return {
            "do_sample": False,
            "num_beams": 1,
            "eos_token_id": self._ends,
            "set_aside": {},
            "served": self.served.model_dump(),
        }

    @override
    def generate(self, requests: Sequence[Request]) -> list[Generation | FloatingPointError]:
        """All at once. Raises `ValueError` for a prompt that is none, or too long, and for unequal endings."""
        max_new_tokens, stop_token_ids, min_new_tokens = requests[0].ending
        if any(request.ending != requests[0].ending for request in requests):
            raise ValueError("requests of one batch must be equal in all but their prompts")
        prompts = [list(request.prompt) for request in requests]
        for prompt in prompts:
            self._check_prompt(prompt, max_new_tokens)
        ends = sorted({*self._ends, *stop_token_ids})
        found = self.complete(prompts, max_new_tokens, min_new_tokens, ends)
        check_prompts(prompts, [one.prompt for one in found])
        return [self._generation(one, max_new_tokens, ends) for one in found]

    def _generation(self, found: Continuation, most: int, ends: Sequence[int]) -> Generation | FloatingPointError:
        row = list(found.tokens)
        for step, value in enumerate(found.logprobs):
            if value is None or not math.isfinite(value):
                return FloatingPointError(f"the log-probability of new token {step} is {value}")
        early = len(row) < most and not (row and row[-1] in ends)
        if early or len(row) > most or any(token in ends for token in row[:-1]):
            raise ServerError(
                f"a continuation of {len(row)} tokens is neither {most} long nor does it stop at its first end token; "
                "does the server limit or stop texts itself?"
            )
        if len(found.logprobs) != len(row):
            raise ServerError(f"{len(row)} new tokens came with {len(found.logprobs)} log-probabilities")
        return Generation(str(self.tokenizer.decode(row, skip_special_tokens=True)), len(found.prompt), len(row))

    @override
    def token_losses(self, input_ids: Sequence[int], slice_tokens: int) -> Tensor:
        import torch

        ids = list(input_ids)
        self._check_prompt(ids, 0)
        logprobs = self.log_probabilities(ids)
        if len(logprobs) != len(ids) - 1:
            raise ServerError(f"a prompt of {len(ids)} tokens came with {len(logprobs)} log-probabilities")
        wrong = [place for place, value in enumerate(logprobs) if value is None or not math.isfinite(value)]
        if wrong:
            raise FloatingPointError(
                f"the log-probability of the token at position {wrong[0] + 1} is {logprobs[wrong[0]]} ({len(wrong)} of "
                f"{len(logprobs)} are not finite)"
            )
        return -torch.tensor(logprobs, dtype=torch.float32)

    @override
    def batch_tokens(self) -> int:
        return ANY_BATCH

    def _check_prompt(self, ids: Sequence[int], new_tokens: int) -> None:
        if not ids:
            raise ValueError("the prompt has no tokens")
        if wrong := [token for token in (min(ids), max(ids)) if not 0 <= token < self._vocab_size]:
            raise ValueError(
                f"the prompt has the token id {wrong[0]}, and the model's vocabulary has {self._vocab_size}; model and "
                "tokenizer do not belong together"
            )
        if len(ids) + new_tokens > self.most_tokens:
            raise ValueError(
                f"a prompt of {len(ids)} tokens with {new_tokens} new ones is more than the server's max_model_len = "
                f"{self.most_tokens}; start it with a larger one"
            )


def check_prompts(sent: Sequence[Sequence[int]], arrived: Sequence[Sequence[int]]) -> None:
    """Raise `ServerError` unless the prompts that were continued are those that were sent."""
    if len(sent) != len(arrived):
        raise ServerError(f"{len(sent)} prompts got {len(arrived)} continuations")
    for prompt, other in zip(sent, arrived, strict=True):
        if list(prompt) != list(other):
            raise ServerError(
                f"a prompt of {len(prompt)} tokens arrived as another one, of {len(other)}; does the server cut or "
                "change prompts?"
            )


class Expected:
    """What a configuration asks such a program to be, with which each of its answers is compared."""

    def __init__(self, cfg: ExperimentConfig, start: Start, method: Method, folder: str) -> None:
        """start: what the run begins with. folder: of the model, or its id on the hub."""
        self._asked: dict[str, Any] = {
            "method": method.name,
            "params": params_of(method),
            "window": start.window,
            "model": cfg.served_model or (str(Path(folder).resolve()) if start.local else folder),
            "logprobs": "raw_logprobs",
        }
        self._own = cfg.engine == "vllm"
        if self._own:  # this process starts it, and it calls a model of the hub by its folder offline
            del self._asked["model"]
        if cfg.dtype is not None:
            self._asked["dtype"] = cfg.dtype
        self._revision = start.revision if cfg.served_model is None else None
        self._quantised = getattr(start.config, "quantization_config", None) is not None
        self._found: Served | None = None

    def check(self, said: object) -> Served:
        """What an answer says of itself. Raises `UserError` if that is not what is asked, or not what the last said."""
        found = Served.read(said)
        if found is None:
            raise UserError(
                f"the server does not say that it runs a method of this project, but {said!r:.100}, so its answers "
                f"would be filed under what they are not; {self._remedy()}"
            )
        if self._found is None and (faults := list(self._faults(found))):
            raise UserError(f"{'; '.join(faults)}; {self._remedy()}")
        if self._found is not None and found != self._found:
            raise UserError(f"the server is another one than at the start: {found.text()}")
        self._found = found
        return found

    def _remedy(self) -> str:
        if self._own:
            return (
                "install the plug-in of serving/ where this runs, see docs/serving.md, and let VLLM_PLUGINS, if it is "
                "set, name gali"
            )
        settings = {name: self._asked[name] for name in ("method", "params", "window")}
        return (
            f"start vLLM with the plug-in of serving/, --model {self._asked['model']} and --additional-config "
            f"'{json.dumps({'gali': settings})}'"
        )

    def _faults(self, found: Served) -> Iterator[str]:
        known = self._revision is not None and found.revision is not None
        for name, value in (self._asked | ({"revision": self._revision} if known else {})).items():
            there = getattr(found, name)
            if json.dumps(there, sort_keys=True) != json.dumps(value, sort_keys=True):  # 1 and 1.0 are two parameters
                hint = "; served_model tells how the server calls it" if name == "model" else ""
                yield f"the server has {name} = {there!r}, and the configuration {value!r}{hint}"
        if found.quantization is not None and not self._quantised:
            yield f"the server has quantised the model ({found.quantization}), which is not so by itself"
