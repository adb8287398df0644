"""What a model's files say, short of its weights being loaded; what cannot be read is a `UserError` of one line."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from models import hub
from pipeline.config import ExperimentConfig
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

    from models.DPI.short_names import Source

T = TypeVar("T")

WEIGHTS_FILES = ("config.json", "*.safetensors", "*.gguf")
"""What in a folder decides over a model's numbers."""


class UnreachableModelError(UserError):
    """A model of the hub, where the hub does not answer and the cache does not have the model."""


def resolve_model(model: str, revision: str | None = None) -> Source:
    """Where a model is. Raises `UserError`: a name that is none is the user's mistake, which needs no traceback."""
    from models.DPI.loading import resolve

    with own_mistakes():
        return resolve(model, revision)


def model_commit(model: str, revision: str | None = None) -> str | None:
    """The commit of a model of the hub; None for a folder. Raises `UserError`."""
    from models.DPI.loading import commit_of

    source = resolve_model(model, revision)
    return None if Path(source.folder).is_dir() else one_line(model, lambda: commit_of(source))


def weights_digests(model: str) -> dict[str, str] | None:
    """Of a model in a folder, its configuration and files of weights, each with its hash; None for one of the hub.

    That has a commit. Raises `UserError` for what cannot be read.
    """
    folder = Path(resolve_model(model).folder)
    if not folder.is_dir():
        return None
    found = {}
    for path in sorted(path for pattern in WEIGHTS_FILES for path in folder.glob(pattern)):
        try:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        except OSError as error:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return found


def read_model_config(model: str, revision: str | None = None, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's configuration; no weights are read. Raises `UserError`."""
    from transformers import AutoConfig

    config: PreTrainedConfig = _read(model, revision, AutoConfig, trust_remote_code)
    return config


def read_tokenizer(
    model: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises `UserError`."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _read(model, revision, AutoTokenizer, trust_remote_code)
    return tokenizer


def read_generation_config(cfg: ExperimentConfig, config: PreTrainedConfig) -> GenerationConfig:
    """What a model is loaded with: its generation_config.json, or what its configuration says. Raises `UserError`."""
    from transformers import GenerationConfig

    source = resolve_model(cfg.model, cfg.model_revision)

    def read() -> GenerationConfig:
        try:
            return GenerationConfig.from_pretrained(source.folder, **source.options)
        except OSError:
            return GenerationConfig.from_model_config(config)

    return one_line(cfg.model, read)


def _read(model: str, revision: str | None, kind: Any, trust_remote_code: bool) -> Any:
    """What one of transformers' Auto classes reads of a model."""
    source = resolve_model(model, revision)
    # False and not left out: transformers then asks, and a "y" on standard input would run a model's own Python.
    return one_line(
        model,
        lambda: kind.from_pretrained(source.folder, **source.options, trust_remote_code=trust_remote_code),
    )


@contextlib.contextmanager
def own_mistakes(before: str = "") -> Iterator[None]:
    """A `ValueError` of our own checks, which names key, value and bound, as a `UserError` without a traceback."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{before}{error}") from None


def one_line(model: str, load: Callable[[], T]) -> T:
    """What `load` returns. Whatever ends it becomes one line: a model's files can be wrong in any way.

    The `UserError` has the error itself as its cause, whose traceback `pipeline.cli` keeps: it may be a bug of ours.
    """
    try:
        return load()
    except Exception as error:
        if isinstance(error, OSError) and resolve_model(model).options.get("local_files_only"):
            said = f"{hub.silence()}, and the cache does not have all of it"
            raise UnreachableModelError(f"cannot load the model {model!r}: {said}") from None
        raise UserError(_said(model, error)) from error


def _said(model: str, error: Exception) -> str:
    """The first line of what an error says, with its kind where that does not go without saying."""
    if isinstance(error, OSError) and "gated repo" in str(error):  # transformers' words, in three lines
        return (
            f"cannot load the model {model!r}: its owner asks for consent first; accept the terms at "
            f"https://huggingface.co/{model}, and log in with `hf auth login` or set HF_TOKEN"
        )
    text = (str(error).strip().splitlines() or [""])[0]
    kind = "" if text and isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: "
    return f"cannot load the model {model!r}: {kind}{text}"
