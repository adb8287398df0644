"""A chat on the terminal with a model that has a method, for texts beyond its window.

python -m tools.chat --model smollm2-135m --method dpi --window 4096

Answers are streamed and greedy. Under causal methods what was read stays in the cache over turns; under others each
turn reads the whole conversation anew. Ctrl-C stops an answer, Ctrl-D ends the chat; /help lists the commands.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from models.mistakes import did_you_mean
from pipeline.cli import EXIT_DONE, EXIT_USER_ERROR, Parser
from pipeline.config import apply_overrides
from pipeline.text import printable
from tasks.errors import UserError
from tasks.reading import read_regular

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

    from models.DPI.methods import Method

MOST_BYTES = 1 << 28
"""Of a text that is loaded."""
HELP = {
    "/load FILE": "put a text before the next message",
    "/method NAME [KEY=VALUE ...]": "another method; without parameters those that reach the target",
    "/save FILE": "write the conversation as JSON",
    "/help": "this",
    "/quit": "end (or Ctrl-D)",
}


class Printer:
    """A streamer of `generate` that writes text as it comes. first: when the first token came, `time.monotonic`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]) -> None:
        """write: takes a piece of text."""
        self._tokenizer = tokenizer
        self._write = write
        self._shown = 0
        self.new: list[int] = []
        self.first: float | None = None
        self._has_prompt = False

    def put(self, value: Any) -> None:
        """The prompt (1, T) first, then tokens."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        self.first = self.first or time.monotonic()
        self.new.extend(value.reshape(-1).tolist())
        text = self.text
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half of a character
            self._write(text[self._shown :])
            self._shown = len(text)

    def end(self) -> None:
        """What was held back."""
        self._write(self.text[self._shown :])

    @property
    def text(self) -> str:
        """Of the answer so far."""
        return str(self._tokenizer.decode(self.new, skip_special_tokens=True))


class Chat:
    """A conversation with a model. window, target: in tokens; target is the most that is read and said."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        window: int,
        target: int,
        *,
        max_new_tokens: int,
        seed: int,
        console: Console,
    ) -> None:
        """The model has its method already."""
        from models.DPI.patches.generation import decode_plainly
        from pipeline.engine import end_token_ids
        from pipeline.prefixes import KeptCache

        decode_plainly(model)
        self._model, self._tokenizer = model, tokenizer
        self._window, self._target = window, target
        self._max_new_tokens, self._seed = max_new_tokens, seed
        self._console = console
        self._ends = end_token_ids(model, tokenizer)
        self._turns: list[dict[str, str]] = []
        self._loaded: list[str] = []
        self._kept = KeptCache()

    @property
    def method(self) -> Method:
        """That the model has."""
        from models.DPI.patches.Llama import installed_method

        found = installed_method(self._model)
        assert found is not None
        return found

    def say(self, message: str) -> None:
        """One turn: the message, with what was loaded before it. Raises UserError for one that is too long."""
        from tasks.chat import chat_ids

        asked = {"role": "user", "content": "\n\n".join([*self._loaded, message])}
        prompt = chat_ids(self._tokenizer, [*self._turns, asked])
        most = min(self._max_new_tokens, self._target - len(prompt))
        if most < 1:
            raise UserError(
                f"the conversation has {len(prompt)} tokens, and the target is {self._target}; start with a larger "
                "--target, or ask about less"
            )
        answer = self._generate(prompt, most)
        if answer is None:
            self._note("stopped before the first token; the message is forgotten")
            return
        self._turns += [asked, {"role": "assistant", "content": answer}]
        self._loaded = []

    def _generate(self, prompt: list[int], most: int) -> str | None:
        """The answer, as far as it came; None if a prompt was not read to its end."""
        import torch

        from models.DPI.patches.caches import length_of
        from models.DPI.patches.generation import dynamic_cache
        from pipeline.engine import FiniteLogits
        from pipeline.prefixes import why_not

        shares = why_not(self.method, self._model.config) is None
        cache: Cache | None = self._kept.take(prompt, 0, static=False) if shares else None
        held = length_of(cache)
        cache = dynamic_cache(self._model) if cache is None else cache
        printer = Printer(self._tokenizer, self._write)
        watch = FiniteLogits()
        model: Any = self._model
        start = time.monotonic()
        stopped = False
        try:
            with torch.inference_mode():
                model.generate(
                    torch.tensor([prompt], device=self._model.device), past_key_values=cache, streamer=printer,
                    max_new_tokens=most, do_sample=False, eos_token_id=self._ends or None,
                    pad_token_id=self._ends[0] if self._ends else 0, logits_processor=[watch],
                )  # fmt: skip
        except KeyboardInterrupt:
            stopped = True
            printer.end()
        except RuntimeError as error:  # out of memory, say
            raise UserError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None
        end = time.monotonic()
        self._console.print()
        if printer.first is None:
            return None
        if any(watch.first_wrong([len(printer.new)])):
            raise UserError("the model's logits are not finite (NaN or infinite); load it in another dtype")
        if shares and not stopped:  # layers of an interrupted pass hold different tokens
            self._kept.keep(prompt + printer.new, cache)
        self._report(len(prompt), held, len(printer.new), printer.first - start, end - printer.first)
        if not shares and len(self._turns) > 1:
            self._note(f"{self.method.label} with these parameters is not causal: the conversation was read anew")
        return printer.text

    def _report(self, prompt: int, held: int, new: int, reading: float, saying: float) -> None:
        total = prompt + new
        distance = largest_distance(self._model, total)
        rate = (prompt - held) / max(reading, 1e-9)
        cached = f", {held:,} in the cache" if held else ""
        speed = f"{new} at {(new - 1) / saying:.1f}" if new > 1 and saying else str(new)
        self._note(
            f"{total:,} tokens (W {self._window:,}, target {self._target:,}), distances to {distance:,.0f}; "
            f"read {prompt - held:,} in {reading:.1f} s ({rate:,.0f} tokens/s){cached}; "
            f"new {speed} tokens/s"
        )

    def _write(self, text: str) -> None:
        self._console.out(printable(text, keep="\n\t"), end="", highlight=False)

    def _note(self, text: str) -> None:
        self._console.print(printable(text), style="dim", markup=False, highlight=False)

    def command(self, line: str) -> bool:
        """Run a line that begins with a slash. False ends the chat. Raises UserError."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        known = [key.split()[0] for key in HELP]
        if name not in known:
            raise UserError(f"unknown command {name!r}{did_you_mean(name, known)} (/help lists them)")
        if name in ("/load", "/save", "/method") and not rest:
            raise UserError(f"{name} needs a word behind it: {next(key for key in HELP if key.startswith(name))}")
        if name == "/help":
            for key, said in HELP.items():
                self._note(f"{key:30}{said}")
        elif name == "/load":
            self.load(Path(rest).expanduser())
        elif name == "/save":
            self.save(Path(rest).expanduser())
        elif name == "/method":
            self.change(rest)
        return name != "/quit"

    def load(self, path: Path) -> None:
        """Put a text before the next message."""
        try:
            text = read_regular(path, MOST_BYTES).decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{str(path)!r} is no text in UTF-8") from None
        except OSError as error:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
        self._loaded.append(text)
        tokens = len(self._tokenizer(text, truncation=False)["input_ids"])
        self._note(f"loaded {tokens:,} tokens; they stand before your next message")

    def save(self, path: Path) -> None:
        """Write the conversation as JSON, where nothing is yet."""
        content = {"method": self.method.name, "params": self.method.model_dump(), "window": self._window}
        text = json.dumps({**content, "turns": self._turns}, ensure_ascii=False, indent=2)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text + "\n")
        except FileExistsError:
            raise UserError(f"{str(path)!r} is there already; give another name") from None
        except OSError as error:
            raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
        self._note(f"saved {len(self._turns)} turns in {path}")

    def change(self, words: str) -> None:
        """Put another method on the model. What the cache holds is not this method's."""
        from models.DPI.methods import METHODS, build_method
        from models.DPI.patches.Llama import install

        name, *pairs = words.split()
        params = apply_overrides({}, pairs)
        if not pairs and name in METHODS:
            params = METHODS[name].params_for(self._window, self._target)
        try:
            install(self._model, build_method(name, params, self._window, self._target), self._window, seed=self._seed)
        except ValueError as error:
            raise UserError(str(error)) from None
        self._kept.drop()
        self._note(f"{self.method.label}: {self.method!r}")


def largest_distance(model: PreTrainedModel, tokens: int) -> float:
    """Between the last of so many tokens and those that it sees, as the method places them."""
    import torch

    from models.DPI.patches.Llama import installation_of

    found = installation_of(model)
    assert found is not None
    segment = found.method.segments(found.rope, tokens - 1, tokens)[-1]
    seen = [(band, torch.arange(int(band.start[-1]), int(band.stop[-1]))) for band in segment.bands]
    return max(float((band.query_positions[-1] - band.keys(keys)).max()) for band, keys in seen if len(keys))


def converse(chat: Chat, console: Console) -> None:
    """Take lines until they end."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print("\n/quit or Ctrl-D ends the chat", style="dim")
            continue
        try:
            if line.startswith("/"):
                if not chat.command(line):
                    return
            elif line:
                chat.say(line)
        except UserError as error:
            console.print(
                f"error: {printable(' '.join(str(error).split()))}", style="red", markup=False, highlight=False
            )
        except KeyboardInterrupt:
            console.print("\nstopped", style="dim")


def run(argv: list[str], console: Console) -> None:
    """Load the model and chat. Raises UserError."""
    parser = Parser(prog="chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="Hugging Face id, local folder, or short name (tiny)")
    parser.add_argument("--method", default="dpi", help="a method's name (dpi)")
    parser.add_argument("--param", action="append", default=[], metavar="KEY=VALUE",
                        help="of the method; may be repeated. None: those that reach the target")  # fmt: skip
    parser.add_argument("--window", type=int, metavar="W", help="in tokens; the model's own where it is left out")
    parser.add_argument("--target", type=int, metavar="N", help="most tokens of the conversation (8 windows)")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="of an answer (512)")
    parser.add_argument("--device", help="cpu, cuda, ...; a GPU if there is one")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], help="bfloat16 on a GPU, else float32")
    parser.add_argument("--seed", type=int, default=42, help="of a method's noise (42)")
    arguments = parser.parse_args(argv)
    for name in ("window", "target", "max_new_tokens"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least 1")

    from models.DPI.dpi import get_model_and_tokenizer
    from models.DPI.loading import window_of
    from models.DPI.methods import METHODS
    from pipeline.model_loader import read_model_config

    logging.getLogger("transformers").setLevel(logging.ERROR)  # its reminders would stand in the answers
    window = arguments.window or window_of(read_model_config(arguments.model))
    target = arguments.target or 8 * window
    params = apply_overrides({}, arguments.param)
    if not params and arguments.method in METHODS:
        params = METHODS[arguments.method].params_for(window, target)
    try:
        model, tokenizer = get_model_and_tokenizer(
            arguments.model, None, arguments.method, params, window, target_length=target,
            dtype=arguments.dtype, device=arguments.device, seed=arguments.seed,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        raise UserError(f"cannot load the model {arguments.model!r}: {' '.join(str(error).split())}") from error
    chat = Chat(
        model, tokenizer, window, target, max_new_tokens=arguments.max_new_tokens, seed=arguments.seed, console=console
    )
    console.print(
        f"{arguments.model} with {chat.method.label}, W {window:,}, target {target:,}; /help", style="dim", markup=False
    )
    converse(chat, console)


def main(argv: list[str] | None = None) -> int:
    """The chat; returns the exit code."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # history and editing of what is typed
    console = Console(soft_wrap=True)
    try:
        run(sys.argv[1:] if argv is None else argv, console)
    except UserError as error:
        sys.stderr.write(f"error: {printable(' '.join(str(error).split()))}\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 130
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
