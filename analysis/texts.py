"""Long texts to read: a folder's, or what Python itself brings along."""

from __future__ import annotations

import re
from pathlib import Path


def long_texts(folder: Path | None) -> tuple[list[str], str]:
    """Texts, and where they are from.

    folder: its *.txt files by name. Where it is not there, the reference of the Python language that `help()` shows:
    300,000 characters, one text, which a model may have seen in training.
    """
    files = sorted(folder.glob("*.txt")) if folder is not None and folder.is_dir() else []
    if folder is not None and files:
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
        return texts, f"{len(files)} texts of `{folder.name}`"
    return [_python_reference()], "the reference of the Python language that `help()` shows"


def _python_reference() -> str:
    from pydoc_data.topics import topics

    sections = (topics[name] for name in sorted(topics))
    # Underlines of headings and grammar tables are no prose.
    prose = (re.sub(r"(?m)^\s*[*=\-~^+|]{3,}.*$\n?", "", section).strip() for section in sections)
    return "\n\n".join(prose)
