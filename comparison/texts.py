"""The long texts of a comparison: for the loss, and as the haystack of passkeys."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

from tasks.errors import UserError
from tasks.reading import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_CHARACTERS_PER_TOKEN = 12
"""Of the beginning of a text that is tokenised first: more than nearly all texts have in a token."""


@dataclass(frozen=True)
class Text:
    """A text. name: the file's. ids: its first tokens, as many as the target; None where it has not so many."""

    name: str
    text: str
    ids: list[int] | None

    @property
    def digest(self) -> str:
        """Of its content."""
        return hashlib.sha256(self.text.encode("utf-8", errors="backslashreplace")).hexdigest()[:16]


def read_texts(folder: Path | None, tokenizer: PreTrainedTokenizerBase, target: int, limit: int) -> list[Text]:
    """The folder's *.txt files by name, or pieces of Python's documentation; at most `limit` as long as the target.

    Those too short for the loss are named, and still serve as haystack. Raises `UserError` if none is long enough.
    """
    pieces = _files(folder) if folder is not None else _documentation(tokenizer, target, limit)
    found: list[Text] = []
    long = 0
    for name, text in pieces:
        ids = first_tokens(text, tokenizer, target)
        if len(ids) < target:
            logger.warning(
                "%s has %d tokens, fewer than the target of %d: its loss is not measured", name, len(ids), target
            )
        found.append(Text(name, text, ids if len(ids) == target else None))
        long += len(ids) == target
        if long == limit:
            break
    if not long:
        where = f"the texts of {str(folder)!r}" if folder is not None else "Python's documentation"
        raise UserError(
            f"{where} have no {target} tokens in one piece; give longer texts (--texts DIR), or lower --target"
        )
    return found


def choosing(texts: Sequence[Text]) -> list[Text]:
    """Those that settings are chosen on; the others report."""
    return list(texts[::2])


def first_tokens(text: str, tokenizer: PreTrainedTokenizerBase, count: int) -> list[int]:
    """The first tokens of a text, special ones at its beginning included, as PG19's perplexity has them."""
    beginning = list(tokenizer(text[: _CHARACTERS_PER_TOKEN * count], verbose=False)["input_ids"])[:count]
    if len(beginning) == count or len(text) <= _CHARACTERS_PER_TOKEN * count:
        return beginning
    return list(tokenizer(text, verbose=False)["input_ids"])[:count]


def _files(folder: Path) -> list[tuple[str, str]]:
    files = sorted(folder.expanduser().glob("*.txt")) if folder.expanduser().is_dir() else []
    if not files:
        raise UserError(f"--texts {str(folder)!r} has no *.txt files; give a folder of long texts")
    return [(file.name, read_text(file)) for file in files]


def _documentation(tokenizer: PreTrainedTokenizerBase, target: int, limit: int) -> list[tuple[str, str]]:
    """The help topics of Python's library in pieces of equal length, as many as are wanted and long enough."""
    whole = "\n".join(topics[name] for name in sorted(topics))
    tokens = len(tokenizer(whole, verbose=False)["input_ids"])
    count = max(1, min(limit, int(tokens / (1.3 * target))))  # pieces have unequal numbers of tokens
    size = len(whole) // count
    return [(f"python-topics-{n + 1}", whole[n * size : (n + 1) * size]) for n in range(count)]
