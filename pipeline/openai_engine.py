"""The engine of `engine = "openai"`: the OpenAI server of vLLM with the plug-in of `serving/`, asked over HTTP."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError
from typing_extensions import override

from models.DPI.served import Served
from pipeline.client import Client, ServerError
from pipeline.served import GREEDY, Continuation, Expected, ServedEngine, check_prompts
from tasks.errors import UserError, said_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MINUS_INFINITY = -9999.0
"""As vLLM writes it in JSON."""


class _OfTokens(BaseModel):
    token_logprobs: list[float | None]


class _OfToken(BaseModel):
    logprob: float | None


class _Choice(BaseModel):
    """One continuation. prompt_logprobs: None of the first token, then an entry for each, by token id."""

    index: int
    token_ids: list[int]
    prompt_token_ids: list[int]
    logprobs: _OfTokens
    prompt_logprobs: list[dict[int, _OfToken] | None] | None = None


class _Answer(BaseModel):
    choices: list[_Choice]


class _Model(BaseModel):
    id: str
    max_model_len: int


class _Models(BaseModel):
    data: list[_Model] = Field(min_length=1)


class OpenAIEngine(ServedEngine):
    """The engine over a server."""

    def __init__(
        self,
        client: Client,
        expected: Expected,
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        vocab_size: int,
        target: int,
    ) -> None:
        """Ask the server what it is. target: tokens that it must take. Raises `UserError` if it is another."""
        super().__init__(tokenizer, ends, vocab_size)
        self._client = client
        self._expected = expected
        with self._refused():
            try:
                model = _Models.model_validate(client.ask("models")).data[0]
            except ValidationError:
                raise ServerError("its list of models is not one of vLLM's, which alone can run GALI") from None
            self._name, self._most_tokens = model.id, model.max_model_len
            self._ask([[self._ends[0] if self._ends else 0]], max_tokens=1)
        if self._most_tokens < target:
            raise UserError(
                f"{client.base_url}: the server's max_model_len = {self._most_tokens} is below max_pe = {target}; "
                f"start it with --max-model-len {target}, or lower max_pe"
            )

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        """Before there is a record, what the server says ends the run."""
        try:
            yield
        except ServerError as error:
            raise UserError(f"{self._client.base_url}: {error}") from None

    @property
    @override
    def served(self) -> Served:
        return self._served

    @property
    @override
    def most_tokens(self) -> int:
        return self._most_tokens

    @override
    def complete(self, prompts: list[list[int]], most: int, least: int, ends: Sequence[int]) -> list[Continuation]:
        """All in one HTTP request."""
        choices = self._ask(prompts, max_tokens=most, min_tokens=least, stop_token_ids=list(ends))
        return [Continuation(one.prompt_token_ids, one.token_ids, one.logprobs.token_logprobs) for one in choices]

    @override
    def log_probabilities(self, ids: list[int]) -> list[float | None]:
        """The last token is the one that may follow the others, so that no more than these n are needed."""
        *before, last = ids
        choices = self._ask([before], max_tokens=1, allowed_token_ids=[last], prompt_logprobs=0)
        check_prompts([before], [one.prompt_token_ids for one in choices])
        (choice,) = choices
        if choice.token_ids != [last]:
            raise ServerError(f"token {last} was to follow, and {choice.token_ids} did")
        # The first has no probability. What a mask did to those of the others is not in it: they are the raw ones.
        pairs = zip(before[1:], (choice.prompt_logprobs or [])[1:], strict=False)
        found = [None if entry is None or token not in entry else entry[token].logprob for token, entry in pairs]
        return [
            -math.inf if value is not None and value <= MINUS_INFINITY else value
            for value in [*found, *choice.logprobs.token_logprobs]
        ]

    def _ask(self, prompts: list[list[int]], **options: Any) -> list[_Choice]:
        """The continuations of prompts, in their order, by the server that is expected."""
        body = {"model": self._name, "prompt": prompts, "logprobs": 0, "return_token_ids": True, **GREEDY, **options}
        answer = self._client.ask("completions", body)
        with said_of(self._client.base_url):
            # First of all: a stock server's answer may lack what else is read.
            self._served = self._expected.check(answer.get("system_fingerprint"))
        try:
            return sorted(_Answer.model_validate(answer).choices, key=lambda choice: choice.index)
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise ServerError(f"the answer is not as vLLM's are: {place}: {error.errors()[0]['msg']}") from None
