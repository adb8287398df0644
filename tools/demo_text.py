"""Writes the demo's long text into a folder: python -m tools.demo_text FOLDER.

The text is the help topics of Python's standard library (`pydoc_data.topics`), 700 kB of English prose about the
language, which every Python carries under its own licence.
"""

import sys
from pathlib import Path
from pydoc_data.topics import topics


def write_topics(folder: Path) -> Path:
    """Write all topics, in alphabetical order, into one text file. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "python-topics.txt"
    path.write_text("\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.demo_text FOLDER")
    sys.stdout.write(f"{write_topics(Path(sys.argv[1]))}\n")
