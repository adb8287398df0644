"""Whether a chat template comes to an end, tried in a process of its own before the text is made in this one.

A template is a program from whoever made the model. transformers runs it in a sandbox that limits neither time nor
memory, and nothing within a process can stop it: a signal reaches the main thread alone, and no single operation, such
as 9 ** (9 ** 9). So another process renders the first prompt, and each that is longer than those before; it has twice
their text, so that few are tried. Of a conversation it renders the turns to come as well: twice as many.

Run as a script, this file is that process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SECONDS = 20
"""Of processor time that a prompt's text may take."""
MEMORY = 1 << 31
"""Bytes that it may take."""
TIMES = 2
"""The trial's text is so many times the prompt's."""
WORDY = 10
MOST_WORDING = 1_000_000
"""A text may have so many times its messages' characters, and so many more."""
PATIENCE = 300
"""Seconds that the process may last in all, its start included: machines are busy."""
OUT_OF_MEMORY = 3

_tried: dict[tuple[str, tuple[str, ...]], int] = {}
_lock = threading.Lock()


def complaint_of(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, str]], *, ahead: int | None = None
) -> str | None:
    """Why the tokenizer's template cannot be used on these turns, or None. An error that it raises is no reason.

    ahead: how many messages to come are tried as well, an even number; None: as many as there are, of a conversation.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str):  # several by name
        template = tokenizer.get_chat_template()
    size = sum(len(turn["content"]) for turn in turns)
    with _lock:
        if size <= _tried.get((template, _roles(turns)), -1):
            return None
        tokens = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        if ahead is None:
            ahead = len(turns) // 2 * 2
        to_come = [{"role": role, "content": "Yes."} for role in ("assistant", "user")] * (ahead // 2)
        messages = [*({**turn, "content": TIMES * turn["content"]} for turn in turns), *to_come]
        counts = range(len(turns), len(messages) + 1, 2)
        said = _try(template, tokens, messages, counts, TIMES * size)
        if said is None:
            for count in counts:
                key = template, _roles(messages[:count])
                _tried[key] = max(TIMES * size, _tried.get(key, -1))
    return said


def _roles(turns: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    return tuple(turn["role"] for turn in turns)


def _try(
    template: str, tokens: Mapping[str, str], messages: Sequence[Mapping[str, str]], counts: Sequence[int], size: int
) -> str | None:
    """What is wrong with the template on the first messages, as many as each of the counts says; None if nothing is.

    size: characters of the messages.
    """
    request = {
        "template": template, "tokens": tokens, "messages": messages, "counts": list(counts),
        "seconds": SECONDS, "memory": MEMORY,
    }  # fmt: skip
    endless = f"does not end within {SECONDS} s on messages of {size:,} characters"
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(Path(__file__))],
            input=json.dumps(request).encode(), capture_output=True, timeout=PATIENCE,
            start_new_session=True,  # Ctrl-C ends it with this process, and never alone
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return endless
    if done.returncode == OUT_OF_MEMORY:
        return f"takes more than {MEMORY / 2**30:g} GiB for messages of {size:,} characters"
    if resource is not None and done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return endless
    if done.returncode != 0:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
        logger.warning("the chat template could not be tried in a process of its own (%d): %s", done.returncode, said)
        return None
    if (length := int(done.stdout)) > WORDY * size + MOST_WORDING:
        return f"makes {length:,} characters of messages of {size:,}"
    return None


def _render(request: Mapping[str, Any]) -> int:
    """The length of the longest text; 0 where the template raises errors. Raises `MemoryError`."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **request["tokens"])
    tokenizer.chat_template = request["template"]
    _limit(request["seconds"], request["memory"])
    longest = 0
    for count in request["counts"]:
        messages = request["messages"][:count]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except MemoryError:
            raise
        except Exception:  # which comes again, with its own words, where the text is made
            continue
        longest = max(longest, len(str(text)))
    return longest


def _limit(seconds: int, memory: int) -> None:
    """Let this process have so much more than it has used."""
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime) + 1 + seconds
    with contextlib.suppress(ValueError, OSError):  # where less is allowed as it is
        resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
    status = Path("/proc/self/statm")
    if status.is_file():
        size = int(status.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))


def main() -> int:
    """Read a request on standard input and write the length of the text to standard output."""
    request = json.load(sys.stdin)
    try:
        length = _render(request)
    except MemoryError:
        return OUT_OF_MEMORY
    sys.stdout.write(str(length))
    return 0


if __name__ == "__main__":
    sys.exit(main())
