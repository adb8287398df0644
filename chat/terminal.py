"""The chat's terminal: its options, the lines that are typed, and how Ctrl-C and Ctrl-D end things."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from models.mistakes import did_you_mean
from pipeline import signals
from pipeline.cli import EXIT_DONE, Parser
from pipeline.help import methods_help
from pipeline.text import printable
from tasks.errors import UserError

if TYPE_CHECKING:
    from types import FrameType

    from chat.session import Chat

DESCRIPTION = """A chat with a model that has a method, for texts beyond its window.

Answers are streamed and greedy. Under causal methods what was read stays in
the cache over turns; under others each turn reads the conversation anew."""
COMMANDS = {
    "/load FILE": "put a text before the next message; may be repeated",
    "/method [NAME [KEY=VALUE ...]]": "which method, or another one; without parameters those that reach the target",
    "/new": "a new conversation: what was said and loaded is forgotten",
    "/save FILE": "write the conversation as JSON",
    "/help": "this",
    "/quit": "end (or Ctrl-D); Ctrl-C stops an answer",
}
NEEDS_FILE = ("/load", "/save")
TARGET_WINDOWS = 8
"""The target where none is given, in windows."""
PAUSE = 0.3
"""Seconds after Ctrl-C in which another one means the same: keys are held, and the first is being answered."""


def command(chat: Chat, line: str) -> bool:
    """Run a line that begins with a slash. False ends the chat. Raises `UserError`."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    known = [key.split()[0] for key in COMMANDS]
    if name not in known:
        raise UserError(f"unknown command {name!r}{did_you_mean(name, known)} (/help lists them)")
    if name in NEEDS_FILE and not rest:
        raise UserError(f"{name} needs a file's name behind it")
    if name == "/help":
        for said in command_lines():
            chat.note(said)
    elif name == "/load":
        chat.load(rest)
    elif name == "/save":
        chat.save(rest)
    elif name == "/method":
        method, *pairs = rest.split() or [""]
        if method:
            chat.change(method, pairs)
        else:
            chat.tell_method()
    elif name == "/new":
        chat.forget()
    return name != "/quit"


def command_lines() -> list[str]:
    """What there is to type, one command a line."""
    width = max(map(len, COMMANDS)) + 2
    return [f"{key:{width}}{said}" for key, said in COMMANDS.items()]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, only warnings are logged, and of transformers only errors: the rest would stand in the answers."""
    levels = {logging.getLogger(): logging.WARNING, logging.getLogger("transformers"): logging.ERROR}
    before = {each: each.level for each in levels}
    for each, level in levels.items():
        each.setLevel(max(each.level, level))
    try:
        yield
    finally:
        for each, level in before.items():
            each.setLevel(level)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, Ctrl-C raises KeyboardInterrupt, as often as it comes but for what comes at once."""
    last = -math.inf

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PAUSE:
            last = now
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:  # whoever started this process does not want it
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def converse(chat: Chat, console: Console) -> None:
    """Take lines until they end. A mistake, or Ctrl-C, ends a turn and nothing else."""
    typed = sys.stdin.isatty()
    while True:
        try:
            line = input("> " if typed else "").strip()
        except EOFError:
            if typed:
                console.print()
            return
        except KeyboardInterrupt:
            console.print("\n/quit or Ctrl-D ends the chat", style="dim")
            continue
        try:
            if line.startswith("/"):
                if not command(chat, line):
                    return
            elif line:
                chat.say(line)
        except UserError as error:
            said = f"error: {printable(' '.join(str(error).split()))}"
            console.print(said, style="red", markup=False, highlight=False, soft_wrap=not console.is_terminal)
        except KeyboardInterrupt:
            console.print("\nstopped", style="dim")


def parser() -> Parser:
    """The options."""
    called = "python -m tools.chat" if Path(sys.argv[0]).suffix == ".py" else None  # else as it is called
    made = Parser(prog=called, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
                  allow_abbrev=False)  # fmt: skip
    made.details = lambda: "\n".join(
        [
            f"example:\n  {made.prog} --model smollm2-135m --method dpi --window 4096\n\nin the chat:",
            *(f"  {line}" for line in command_lines()),
            f"\n{methods_help()}",
        ]
    )
    made.add_argument("--model", default="tiny", help="Hugging Face id, local folder, or short name (tiny)")
    made.add_argument("--method", default="dpi", help="a method's name (dpi)")
    made.add_argument("--param", action="append", default=[], metavar="KEY=VALUE",
                      help="of the method; may be repeated. None: those that reach the target")  # fmt: skip
    made.add_argument("--window", type=int, metavar="W", help="in tokens; the model's own where it is left out")
    made.add_argument("--target", type=int, metavar="N",
                      help=f"most tokens of the conversation ({TARGET_WINDOWS} windows)")  # fmt: skip
    made.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="of an answer (512)")
    made.add_argument("--chat", choices=["auto", "none"], default="auto",
                      help="auto: the model's chat template; none: turns as they are, a line each")  # fmt: skip
    made.add_argument("--device", help="cpu, cuda, ...; a GPU if there is one")
    made.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], help="bfloat16 on a GPU, else float32")
    made.add_argument("--attn-impl", default="auto", help="auto, triton, flash, sdpa, reference (auto)")
    made.add_argument("--seed", type=int, default=42, help="of a method's noise (42)")
    made.add_argument("--trust-remote-code", action="store_true", help="run a model's own Python files")
    return made


def open_chat(argv: list[str], console: Console) -> Chat:
    """The chat that the command line asks for, its model loaded. Raises `UserError`."""
    arguments = parser().parse_args(argv)
    for name in ("window", "target", "max_new_tokens"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least 1")

    from chat.session import Chat, params_of
    from models.DPI.loading import window_of
    from models.DPI.methods import METHODS
    from pipeline.config import build_config
    from pipeline.distributed import Workers
    from pipeline.model_files import read_model_config
    from pipeline.model_loader import EngineLoader

    config = read_model_config(arguments.model, trust_remote_code=arguments.trust_remote_code)
    try:
        window = arguments.window or window_of(config)
    except ValueError as error:
        raise UserError(str(error)) from None
    target = arguments.target or TARGET_WINDOWS * window
    if target < window:
        raise UserError(f"--target {target} is below the window of {window} tokens; raise it, or lower --window")
    params = params_of(arguments.param, "--param")
    if not params and arguments.method in METHODS:
        params = METHODS[arguments.method].params_for(window, target)
    content = {
        "model": arguments.model, "exp_name": "chat", "method": arguments.method, "params": params, "task": "needle",
        "max_pe": target, "ori_max_position_embeddings": window, "seed": arguments.seed, "dtype": arguments.dtype,
        "device": arguments.device, "attn_impl": arguments.attn_impl, "trust_remote_code": arguments.trust_remote_code,
    }  # fmt: skip
    engine = EngineLoader(Workers()).with_model(build_config(content, "chat"))
    chat = Chat(
        engine.model, engine.tokenizer, window, target,
        name=arguments.model, max_new_tokens=arguments.max_new_tokens, seed=arguments.seed, console=console,
        mode=arguments.chat,
    )  # fmt: skip
    chat.note(f"{arguments.model} with {chat.method.label}, W {window:,}, target {target:,}; /help")
    return chat


def main(argv: list[str]) -> int:
    """The chat; returns the exit code. Raises `UserError`."""
    with contextlib.suppress(ImportError):
        import readline  # history and editing of what is typed

        readline.set_completer_delims(" ")
        readline.parse_and_bind("tab: complete")  # of files' names
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what another encoding cannot say must not end the chat
    console = Console(soft_wrap=True)
    try:
        chat = open_chat(argv, console)
        with interruptible(), quiet():
            converse(chat, console)
    except KeyboardInterrupt:
        return signals.EXIT_INTERRUPTED
    except signals.Terminated:
        return signals.EXIT_TERMINATED
    return EXIT_DONE
