"""A conversation with a model that has a method: turns, loaded texts, and the cache that is kept between turns."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from rich.console import Console
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from typing_extensions import override

from models.DPI.methods import METHODS, Method, build_method
from models.DPI.patches.caches import crop, length_of, tokens_of_all_layers
from models.DPI.patches.generation import decode_plainly, dynamic_cache
from models.DPI.patches.Llama import install, installation_of, installed_method
from models.DPI.patches.progress import progress
from pipeline.config import apply_overrides
from pipeline.engine import FiniteLogits, end_token_ids
from pipeline.prefixes import KeptCache, why_not
from pipeline.text import printable
from tasks.chat import ChatMode, chat_ids, rehearse
from tasks.errors import UserError
from tasks.reading import read_regular

MOST_BYTES = 1 << 28
"""Of a file that is loaded."""
_CHARACTERS_PER_TOKEN = 32
"""A text with more than so many for each token of the target is refused before it is tokenised, which takes minutes."""
_REHEARSED_CHARACTERS, _REHEARSED_MESSAGES = 1 << 20, 32


class Printer(TextStreamer):
    """Writes an answer word by word. new: its tokens. first: when the first of them came, `time.monotonic`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]) -> None:
        """write: takes a piece of text."""
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write
        self.new: list[int] = []
        self.first: float | None = None

    @override
    def put(self, value: Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.first = self.first or time.monotonic()
            self.new.extend(value.reshape(-1).tolist())
        super().put(value)  # type: ignore[no-untyped-call]

    @override
    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._write(text)


class Chat:
    """A conversation with a model. window, target: in tokens; target is the most that is read and said."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        window: int,
        target: int,
        *,
        name: str,
        max_new_tokens: int,
        seed: int,
        console: Console,
        mode: ChatMode = "auto",
    ) -> None:
        """The model has its method already. name: what it is called. mode: as `chat_ids` takes it.

        Raises `UserError` for a template that does not come to an end.
        """
        decode_plainly(model)
        self._model, self._tokenizer, self._name = model, tokenizer, name
        self._window, self._target = window, target
        self._max_new_tokens, self._seed = max_new_tokens, seed
        self._console, self._mode = console, mode
        self._ends = end_token_ids(model, tokenizer)
        self._turns: list[dict[str, str]] = []
        self._loaded: list[str] = []
        self._kept = KeptCache()
        if mode == "auto":
            rehearse(tokenizer, min(8 * target, _REHEARSED_CHARACTERS), _REHEARSED_MESSAGES)

    @property
    def method(self) -> Method:
        """That the model has."""
        found = installed_method(self._model)
        assert found is not None
        return found

    def say(self, message: str) -> None:
        """One turn: the message, with what was loaded before it. Raises `UserError`, and forgets the message then."""
        asked = {"role": "user", "content": "\n\n".join([*self._loaded, message])}
        try:
            prompt = chat_ids(self._tokenizer, [*self._turns, asked], mode=self._mode)
        except TemplateError as error:
            raise UserError(f"the model's chat template refuses the conversation: {error}") from None
        most = min(self._max_new_tokens, self._target - len(prompt))
        if most < 1:
            raise UserError(
                f"the conversation has {len(prompt)} tokens, and the target is {self._target}; /new forgets it and "
                "what was loaded, and a larger --target holds more"
            )
        answer = self._generate(prompt, most)
        if answer is None:
            self.note("stopped before the first token; the message is forgotten")
            return
        self._turns += [asked, {"role": "assistant", "content": answer}]
        self._loaded = []

    def _generate(self, prompt: list[int], most: int) -> str | None:
        """The answer, as far as it came; None if the prompt was not read to its end."""
        shares = why_not(self.method, self._model.config) is None
        taken = self._kept.take(prompt, 0, static=False) if shares else None
        held = length_of(taken)
        cache = dynamic_cache(self._model) if taken is None else taken
        printer = Printer(self._tokenizer, self._write)
        watch = FiniteLogits()
        model: Any = self._model
        start = time.monotonic()
        try:
            with torch.inference_mode(), progress(self._model):
                model.generate(
                    torch.tensor([prompt], device=self._model.device), past_key_values=cache, streamer=printer,
                    max_new_tokens=most, do_sample=False, eos_token_id=self._ends or None,
                    pad_token_id=self._ends[0] if self._ends else 0, logits_processor=[watch],
                )  # fmt: skip
        except KeyboardInterrupt:
            printer.end()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:  # out of memory, say
            raise UserError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None
        end = time.monotonic()
        self._console.print()
        if shares and (taken is not None or printer.first is not None):  # others hold the keys of no whole pass
            self._keep(prompt + printer.new, cache)
        if printer.first is None:
            return None
        if any(watch.first_wrong([len(printer.new)])):
            self._kept.drop()
            raise UserError("the model's logits are not finite (NaN or infinite); load it in another dtype")
        self._report(len(prompt), held, len(printer.new), printer.first - start, end - printer.first)
        if not shares and self._turns:
            self.note(f"{self.method.label} with these parameters is not causal: the conversation was read anew")
        return str(self._tokenizer.decode(printer.new, skip_special_tokens=True))

    def _keep(self, ids: list[int], cache: Cache) -> None:
        """Keep the tokens that all layers hold: a pass that was interrupted ended in some layer."""
        whole = tokens_of_all_layers(cache)
        if whole and crop(cache, whole, 0, static=False):
            self._kept.keep(ids, cache)

    def _report(self, prompt: int, held: int, new: int, reading: float, saying: float) -> None:
        total = prompt + new
        distance = largest_distance(self._model, total)
        rate = (prompt - held) / max(reading, 1e-9)
        cached = f", {held:,} in the cache" if held else ""
        speed = f" at {(new - 1) / saying:.1f} tokens/s" if new > 1 and saying else ""
        self.note(
            f"{total:,} tokens (W {self._window:,}, target {self._target:,}), distances to {distance:,.0f}; "
            f"read {prompt - held:,} in {reading:.1f} s ({rate:,.0f} tokens/s){cached}; new {new}{speed}"
        )

    def _write(self, text: str) -> None:
        self._console.out(printable(text, keep="\n\t"), end="", highlight=False)

    def note(self, text: str) -> None:
        """Show a line that is no part of the conversation, wrapped between words on a terminal."""
        wide = not self._console.is_terminal
        self._console.print(printable(text), style="dim", markup=False, highlight=False, soft_wrap=wide)

    def load(self, name: str) -> None:
        """Put a file's text before the next message. Raises `UserError`."""
        try:
            text = read_regular(Path(name).expanduser(), MOST_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"{name!r} is no text in UTF-8; convert it") from None
        except (ValueError, RuntimeError) as error:  # a name that no file can have, a home that is not there
            raise UserError(f"cannot read {name!r}: {error}") from None
        if "\0" in text:
            raise UserError(f"{name!r} holds NUL characters, as no text does; convert it")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if not text.strip():
            raise UserError(f"{name!r} is empty; nothing is loaded")
        self._check_room(name, text)
        self._loaded.append(text)

    def _check_room(self, name: str, text: str) -> None:
        """Say how many tokens a text has. Raises `UserError` where no answer has room behind it."""
        size = f"{len(text):,} characters" if len(text) > _CHARACTERS_PER_TOKEN * self._target else None
        if size is None:
            tokens = len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            size = f"{tokens:,} tokens" if tokens >= self._target else None
        if size is not None:
            raise UserError(
                f"{name!r} has {size}, and the target is {self._target:,} tokens; load a part of it, or start with a "
                "larger --target"
            )
        self.note(f"loaded {tokens:,} tokens; they stand before your next message")

    def save(self, name: str) -> None:
        """Write the conversation as JSON, where nothing is yet. Raises `UserError`."""
        content = {
            "model": self._name, "method": self.method.name, "params": self.method.model_dump(mode="json"),
            "window": self._window, "target": self._target, "turns": self._turns,
        }  # fmt: skip
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2)
        try:
            path = Path(name).expanduser()
            with path.open("x", encoding="utf-8") as file:
                try:
                    file.write(text + "\n")
                    file.flush()
                except OSError:  # a full disk: half a conversation is none
                    path.unlink(missing_ok=True)
                    raise
        except FileExistsError:
            raise UserError(f"{name!r} is there already; give another name") from None
        except OSError as error:
            raise UserError(f"cannot write {name!r}: {error.strerror or error}") from None
        except (ValueError, RuntimeError) as error:
            raise UserError(f"cannot write {name!r}: {error}") from None
        self.note(f"saved {len(self._turns)} turns in {name}")

    def change(self, name: str, pairs: Sequence[str]) -> None:
        """Put another method on the model. What the cache holds is not this method's. Raises `UserError`."""
        params = params_of(pairs, "/method")
        if not pairs and name in METHODS:
            params = METHODS[name].params_for(self._window, self._target)
        try:
            built = build_method(name, params, self._window, self._target)
            install(self._model, built, self._window, attn_impl=self._implementation(), seed=self._seed)
        except ValueError as error:
            raise UserError(str(error)) from None
        self._kept.drop()
        self.tell_method()

    def _implementation(self) -> str:
        found = installation_of(self._model)
        return "auto" if found is None else found.attn_impl

    def tell_method(self) -> None:
        """Show which method the model has."""
        self.note(f"{self.method.label}: {self.method!r}")

    def forget(self) -> None:
        """Begin anew: nothing was said, nothing is loaded."""
        self._turns, self._loaded = [], []
        self._kept.drop()
        self.note("a new conversation")


def params_of(pairs: Sequence[str], said: str) -> dict[str, Any]:
    """Parameters from KEY=VALUE. said: where they come from, for errors. Raises `UserError`."""
    for pair in pairs:
        if not re.fullmatch(r"\w+=.*", pair, re.DOTALL):
            raise UserError(f"{said}: {pair!r} is not of the form KEY=VALUE (a list without blanks: scales=[2,4])")
    return apply_overrides({}, pairs)


def largest_distance(model: PreTrainedModel, tokens: int) -> float:
    """Between the last of so many tokens and those that it sees, as the method places them."""
    found = installation_of(model)
    assert found is not None
    segment = found.method.segments(found.rope, tokens - 1, tokens)[-1]
    seen = [(band, torch.arange(int(band.start[-1]), int(band.stop[-1]))) for band in segment.bands]
    return max(float((band.query_positions[-1] - band.keys(keys)).max()) for band, keys in seen if len(keys))
