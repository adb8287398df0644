"""What a benchmark ran on, for the line above its figures."""

import importlib.metadata
import platform

import torch

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
