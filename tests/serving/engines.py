"""An engine of vLLM and this repository's model, behind the same few calls."""

import gc
from collections.abc import Sequence
from typing import Any

import torch

from models.DPI import build_method, get_model_and_tokenizer, installed
from tests.conftest import TINY

WINDOW = 512
GALI: dict[str, Any] = {"method": "dpi", "params": {"chunk_coe": 1, "local_window": 256}}
STOCK: dict[str, Any] = {"method": "repro_original", "params": {}}
NEW_TOKENS = 16


class Engine:
    """vllm.LLM in this process, greedy."""

    max_model_len = 8100

    def __init__(self, gali: dict[str, Any] | None, **options: Any) -> None:
        from vllm import LLM

        settings = {} if gali is None else {"additional_config": {"gali": gali}}
        chosen = {
            "model": str(TINY),
            "dtype": "float32",
            "max_model_len": self.max_model_len,
            "max_num_batched_tokens": 256,
            "enable_prefix_caching": True,
            "block_size": 32,
            "kv_cache_memory_bytes": 512 << 20,
            "enforce_eager": True,
            "disable_log_stats": False,
            **settings,
            **options,
        }
        self.llm = LLM(**chosen)

    def outputs(
        self, prompts: Sequence[Sequence[int]], tokens: int | Sequence[int] = NEW_TOKENS, **options: Any
    ) -> list[Any]:
        """vLLM's outputs, all prompts in one batch. tokens: new ones, of all prompts or of each."""
        from vllm import SamplingParams

        counts = [tokens] * len(prompts) if isinstance(tokens, int) else tokens
        sampling = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True, **options) for n in counts]
        return self.llm.generate([{"prompt_token_ids": list(p)} for p in prompts], sampling, use_tqdm=False)

    def continuations(
        self, prompts: Sequence[Sequence[int]], tokens: int | Sequence[int] = NEW_TOKENS
    ) -> list[list[int]]:
        """The new tokens of each prompt, all prompts in one batch."""
        return [list(output.outputs[0].token_ids) for output in self.outputs(prompts, tokens)]

    def log_probabilities(self, prompt: Sequence[int]) -> torch.Tensor:
        """Of each token but the first, (N - 1,)."""
        output = self.outputs([prompt], tokens=1, prompt_logprobs=0)[0]
        pairs = zip(prompt[1:], output.prompt_logprobs[1:], strict=True)
        return torch.tensor([entry[token].logprob for token, entry in pairs])

    def forget(self) -> None:
        """Empty the prefix cache."""
        assert self.llm.reset_prefix_cache()

    def counted(self, name: str) -> float:
        """One of vLLM's counters."""
        return sum(metric.value for metric in self.llm.get_metrics() if metric.name == name)

    def close(self) -> None:
        """Let go of the engine's memory, and of no more.

        vLLM shuts an engine of this process down when it is collected. That parts the process from its groups, which
        its other engines need: they would fail at their next request.
        """
        client = self.llm.llm_engine.engine_core
        client._finalizer.detach()
        client.engine_core.model_executor.shutdown()
        self.llm = None
        gc.unfreeze()  # vLLM has kept what it made from being collected
        gc.collect()


class Reference:
    """The model of transformers with a method of this repository, on the CPU."""

    def __init__(self, dtype: str = "float32") -> None:
        self.model, self.tokenizer = get_model_and_tokenizer(
            str(TINY), None, "repro_original", {}, dtype=dtype, device="cpu"
        )

    def tokens(self, text: str) -> list[int]:
        """Without a limit of length."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def text(self, tokens: Sequence[int]) -> str:
        """Their text."""
        return str(self.tokenizer.decode(tokens))

    @torch.inference_mode()
    def continuations(
        self, settings: dict[str, Any], prompts: Sequence[Sequence[int]], tokens: int = NEW_TOKENS
    ) -> list[list[int]]:
        """The new tokens of each prompt, one after another."""
        window = settings.get("window") or WINDOW
        with installed(self.model, build_method(settings["method"], settings["params"]), window):
            return [self._continuation(prompt, tokens) for prompt in prompts]

    def _continuation(self, prompt: Sequence[int], tokens: int) -> list[int]:
        ids = torch.tensor([list(prompt)])
        found = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=None
        )
        return found[0, len(prompt) :].tolist()

    @torch.inference_mode()
    def log_probabilities(self, settings: dict[str, Any], prompt: Sequence[int]) -> torch.Tensor:
        """Of each token but the first, (N - 1,)."""
        ids = torch.tensor([list(prompt)])
        with installed(self.model, build_method(settings["method"], settings["params"]), WINDOW):
            scores = self.model(ids).logits[0, :-1].float().log_softmax(-1)
        return scores.gather(1, ids[0, 1:, None])[:, 0]
