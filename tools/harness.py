"""EleutherAI's lm-evaluation-harness with a model that has a method: its command line, and the model `gali` for Python.

python -m tools.harness run --model gali --model_args pretrained=tiny,method=dpi,params=chunk_coe:1,max_length=2048 ...

See docs/harness.md. What would be read in part only is refused, where the harness cuts prompts at their left.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from models.DPI.dpi import get_model_and_tokenizer
from models.DPI.loading import commit_of, resolve
from models.DPI.patches.generation import decode_plainly
from models.DPI.patches.Llama import installation_of
from models.mistakes import did_you_mean
from pipeline.cli import EXIT_USER_ERROR
from pipeline.config import read_toml
from pipeline.engine import FiniteLogits, until_end
from pipeline.text import printable
from tasks.errors import UserError

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    # From Python an ImportError as any other; from the command line its text.
    raise ImportError(
        f"{error}: the harness is not installed; pip install 'lm_eval==0.4.13' (its RULER tasks: 'lm_eval[ruler]')"
    ) from error

_LOADING = ("dtype", "attn_impl", "seed", "device_map", "trust_remote_code")
_TAKEN = (
    "pretrained", "method", "params", "window", "max_length", "batch_size", "max_batch_size", "device", "add_bos_token",
    "prefix_token_id", "logits_cache", "softmax_dtype", "chat_template_args", "tokenizer", *_LOADING,
)  # fmt: skip


def parse_params(params: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """A method's parameters: a mapping, `name:value;name:value` with TOML's values, or a TOML file with [params].

    Raises UserError.
    """
    if params is None or isinstance(params, Mapping):
        return dict(params or {})
    if params.endswith(".toml"):
        table = read_toml(Path(params)).get("params", {})
        if not isinstance(table, dict):
            raise UserError(f"{params!r}: params is no table")
        return table
    found: dict[str, Any] = {}
    for part in filter(None, params.split(";")):
        name, colon, value = (text.strip() for text in part.partition(":"))
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name] = value  # a word, such as gaussian
        if not colon or not name or value == "":
            raise UserError(f"params: {part!r} is not of the form name:value; several are parted by a semicolon")
    return found


@register_model("gali")
class GaliLM(HFLM):  # type: ignore[misc]
    """The harness's Hugging Face model with a method on it.

    pretrained: as `get_model_and_tokenizer` takes it. method, params: see `parse_params`. window: W in tokens, the
    model's own if None. max_length: the target, the most tokens of a prompt and its continuation; what is longer
    raises. batch_size, max_batch_size, device and others: as for HFLM; dtype, attn_impl, seed, device_map,
    trust_remote_code: as for `get_model_and_tokenizer`. tokenizer: heeded by the harness's own synthetic tasks alone.

    Raises UserError for what cannot be.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        method: str | None = None,
        params: Mapping[str, Any] | str | None = None,
        window: int | None = None,
        max_length: int | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        **others: Any,
    ) -> None:
        """See the class."""
        if unknown := [name for name in others if name not in _TAKEN]:
            raise UserError(f"model_args: unknown key {unknown[0]!r}{did_you_mean(unknown[0], _TAKEN)}")
        if pretrained is None or method is None:
            raise UserError("model_args: give pretrained and method, such as pretrained=tiny,method=repro_original")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("the model gali runs in one process; for several GPUs give device_map=auto")
        loading = {name: others.pop(name) for name in _LOADING if name in others}
        others.pop("tokenizer", None)
        try:
            model, tokenizer = get_model_and_tokenizer(
                pretrained, None, method, parse_params(params), window,
                target_length=max_length, device=device, **loading,
            )  # fmt: skip
        except (ValueError, OSError) as error:
            raise UserError(f"model_args: {error}") from error
        installation = installation_of(model)
        assert installation is not None
        self._method = installation.method
        if max_length is None and self._method.extends:
            raise UserError(
                f"model_args: max_length is missing, the most tokens that {method} is to read (prompt and continuation)"
            )
        decode_plainly(model)
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            max_length=max_length or installation.rope.window,
            batch_size=batch_size,
            **others,
        )
        self.revision = commit_of(resolve(pretrained)) or "main"

    @override
    def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
        """(B, T) -> logits (B, T, vocabulary). Raises FloatingPointError if some are not finite."""
        logits = super()._model_call(inps, attn_mask, labels)
        if not bool(logits.amax(-1).isfinite().all()):
            raise FloatingPointError(f"logits of a batch of {tuple(inps.shape)} tokens are not finite")
        return logits

    @override
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        """The harness pads a batch on the right and gives no mask, which a method that is not causal would read as
        text: there rows of a batch have one length.
        """
        for _, context, continuation in requests:
            self._check_length(len(context) + len(continuation) - 1, "a context with its continuation")
        if self._method.is_causal():
            found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, **options)
            return found
        groups: dict[int, list[int]] = defaultdict(list)
        for place, (_, context, continuation) in enumerate(requests):
            groups[len(context) + len(continuation)].append(place)
        answers: dict[int, tuple[float, bool]] = {}
        for places in groups.values():
            group = super()._loglikelihood_tokens([requests[place] for place in places], True, **options)
            answers.update(zip(places, group, strict=True))
        return [answers[place] for place in range(len(requests))]

    @override
    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The harness's own. Raises UserError for a budget with which prompts would be cut."""
        for request in requests:
            asked = request.args[1]
            if "max_length" in asked:
                raise UserError("generation_kwargs: max_length would count the prompt too; give max_gen_toks")
            names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
            budget = next((int(asked[name]) for name in names if asked.get(name) is not None), self.max_gen_toks)
            if budget >= self.max_length:
                raise UserError(
                    f"max_gen_toks = {budget} leaves no room for a prompt within max_length = {self.max_length}; "
                    "lower it with --gen_kwargs, or raise max_length in model_args"
                )
        found: list[str] = super().generate_until(requests, disable_tqdm)
        return found

    @override
    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Any, Any]:
        """Token ids and mask, (B, T). Raises UserError in place of cutting a prompt."""
        input_ids, attention_mask = super().tok_batch_encode(strings, padding_side, None, truncation)
        if left_truncate_len is not None:
            room = self.max_length - left_truncate_len
            self._check_length(int(attention_mask.sum(1).max()) + room, f"a prompt and max_gen_toks = {room}")
        return input_ids, attention_mask

    @override
    def _model_generate(self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any) -> Any:
        """Token ids (B, T + new). Raises FloatingPointError if logits of a row are not finite."""
        watch = FiniteLogits()
        found = super()._model_generate(context, max_length, stop, logits_processor=[watch], **generation_kwargs)
        new = [until_end(row, [self.eot_token_id]) for row in found[:, context.shape[1] :].tolist()]
        if any(step is not None for step in watch.first_wrong([len(row) for row in new])):
            raise FloatingPointError(f"logits after prompts of {tuple(context.shape)} tokens are not finite")
        return found

    def _check_length(self, tokens: int, what: str) -> None:
        if tokens > self.max_length:
            raise UserError(
                f"{what} have {tokens} tokens, more than max_length = {self.max_length}; the harness would cut them at "
                "their left; raise max_length in model_args (with what the method needs for it), or take shorter data"
            )


def main() -> int:
    """The harness's command line; a mistake in what is ours ends in one line. Returns the exit code."""
    try:
        cli_evaluate()
    except UserError as error:
        sys.stderr.write(f"error: {printable(' '.join(str(error).split()))}\n")
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
