"""The engine of `engine = "vllm"`: vLLM's engine begun by this process, with the plug-in of `serving/`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from models.DPI.served import Served
from pipeline.config import ExperimentConfig
from pipeline.served import GREEDY, Continuation, Expected, ServedEngine
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from models.DPI.methods import Method
    from pipeline.checks import Start

SHUTDOWN_SECONDS = 60
"""What the engine's processes have to end; they wait for each other for 9."""


class VllmEngine(ServedEngine):
    """The engine over `vllm.LLM`."""

    def __init__(
        self, llm: Any, expected: Expected, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], vocab_size: int
    ) -> None:
        """llm: see `begin`. Raises `UserError` if it is not what is expected, the plug-in left out say."""
        super().__init__(tokenizer, ends, vocab_size)
        from vllm.entrypoints.serve.utils.fingerprint import get_system_fingerprint

        self._llm = llm
        self._served = expected.check(get_system_fingerprint(llm.llm_engine.vllm_config))

    @property
    @override
    def served(self) -> Served:
        return self._served

    @property
    @override
    def most_tokens(self) -> int:
        most: int = self._llm.llm_engine.vllm_config.model_config.max_model_len
        return most

    @override
    def complete(self, prompts: list[list[int]], most: int, least: int, ends: Sequence[int]) -> list[Continuation]:
        found = self._ask(prompts, max_tokens=most, min_tokens=least, stop_token_ids=list(ends))
        return [Continuation(one.prompt_token_ids, one.outputs[0].token_ids, _of_new(one)) for one in found]

    @override
    def log_probabilities(self, ids: list[int]) -> list[float | None]:
        """As the server's: the last token is the one that may follow the others."""
        *before, last = ids
        (found,) = self._ask([before], max_tokens=1, allowed_token_ids=[last], prompt_logprobs=0)
        of_prompt = [entry[token].logprob for token, entry in zip(before[1:], found.prompt_logprobs[1:], strict=True)]
        return [*of_prompt, *_of_new(found)]

    @override
    def close(self) -> None:
        """Let the engine's processes and memory go, in their own time: one that is killed may take this one along."""
        self._llm.llm_engine.engine_core.shutdown(timeout=SHUTDOWN_SECONDS)

    def _ask(self, prompts: list[list[int]], **options: Any) -> list[Any]:
        from vllm import SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        sampling = SamplingParams(logprobs=0, detokenize=False, **GREEDY, **options)
        try:
            found: list[Any] = self._llm.generate(
                [{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False
            )
        except EngineDeadError as error:
            raise UserError("vLLM's engine has ended; the same command goes on from here") from error
        return found


def _of_new(found: Any) -> list[float | None]:
    new = found.outputs[0]
    return [entry[token].logprob for token, entry in zip(new.token_ids, new.logprobs, strict=True)]


def check_installed() -> None:
    """Raise `UserError` where vLLM or the plug-in is missing."""
    missing = [name for name in ("vllm", "vllm_gali") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"engine = 'vllm': {' and '.join(missing)} cannot be imported here; docs/serving.md says how vLLM and the "
            "plug-in are installed"
        )


def begin(cfg: ExperimentConfig, start: Start, method: Method, folder: str) -> Any:
    """`vllm.LLM` with a method. folder: of the model, or its id on the hub."""
    from vllm import LLM

    settings: Mapping[str, Any] = {"method": method.name, "params": dict(cfg.params), "window": start.window}
    return LLM(
        model=folder,
        revision=start.revision,
        tokenizer_revision=start.revision,
        dtype=str(start.dtype).removeprefix("torch."),
        max_model_len=cfg.options.max_pe,
        trust_remote_code=cfg.trust_remote_code,
        skip_tokenizer_init=True,
        additional_config={"gali": settings},
        **cfg.vllm,
    )
