"""Draw the map of distances of every method for `docs/methods.md`.

    python -m tools.draw_methods

Writes `docs/images/<method>.png` for each registered method, and removes those of methods that are gone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.distance_maps import draw_one
from models.DPI.methods import METHODS

FOLDER = Path(__file__).parents[1] / "docs" / "images"
WINDOW, TARGET = 4096, 16_384


def draw_methods(folder: Path) -> None:
    """Write all pictures into a folder, the same bytes in every run."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.png"):
        if path.stem not in METHODS:
            path.unlink()
    for name in METHODS:
        figure = draw_one(name, WINDOW, TARGET)
        figure.savefig(
            folder / f"{name}.png",
            dpi=110,
            facecolor="white",
            metadata={"Software": None},
            pil_kwargs={"optimize": True},
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: docs/images)")
    draw_methods(parser.parse_args(argv).out)


if __name__ == "__main__":
    main()
