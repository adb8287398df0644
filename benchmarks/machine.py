"""What a benchmark ran on, for the line above its figures, and how those are shown and kept."""

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PACKAGES = ("torch", "triton", "transformers")


def machine() -> str:
    """The device with the versions that decide its speed, in one line."""
    parts = [torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"]
    for name in PACKAGES:
        try:
            parts.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:  # Triton comes with CUDA builds of torch alone
            continue
    return ", ".join([*parts, f"Python {platform.python_version()}"])


def show(settings: str, table: Table) -> None:
    """Print a table below what it was measured on, and with which settings."""
    console = Console(width=140)
    console.print(f"{machine()}, {settings}")
    console.print(table)


def keep(results: Sequence["DataclassInstance"], path: Path | None) -> None:
    """Write results as JSON, where a path is given."""
    if path is not None:
        path.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
