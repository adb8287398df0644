"""The Hugging Face hub: whether it answers, what is said where it does not, and which commit a name stands for.

huggingface_hub asks a host that does not answer six times over 24 s, for every file of a model anew. Here the hub is
asked once a process, three times in a few seconds; where it is silent, the cache serves or the run ends with one line.
What breaks off later, huggingface_hub itself tries again, with growing pauses.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

PAUSES = (0.0, 1.0, 2.0)
"""Seconds before each try."""
PATIENCE = 3.0
"""Seconds that a try waits for an answer."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


@functools.cache
def silence() -> str | None:
    """Why nothing can be had from the hub, or None if it answers. The answer holds for the process."""
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    said = ""
    for pause in PAUSES:
        time.sleep(pause)
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        except Exception as error:  # which class it has depends on huggingface_hub's version
            said = f"{type(error).__name__}: {error}".strip(": ")
        else:
            return None
    logger.debug("the hub does not answer: %s", said)
    return f"the hub ({constants.ENDPOINT}) does not answer after {len(PAUSES)} tries ({said})"


def file_of_dataset(repository: str, name: str, revision: str) -> Path:
    """A file of a data set repository, downloaded or from the cache. Raises `OSError`, one line, if neither can be."""
    from huggingface_hub import constants, hf_hub_download

    why = silence()
    options: Any = {"repo_type": "dataset", "revision": revision, "cache_dir": constants.HF_HUB_CACHE}
    try:
        return Path(hf_hub_download(repository, name, local_files_only=why is not None, **options))
    except OSError as error:  # the hub's own errors are among them
        raise OSError(_reason(error, why)) from None


def folder_of_dataset(repository: str, revision: str) -> Path:
    """The folder with all files of a data set repository. Raises `OSError` as `file_of_dataset` does."""
    from huggingface_hub import constants, snapshot_download

    why = silence()
    options: Any = {"repo_type": "dataset", "revision": revision, "cache_dir": constants.HF_HUB_CACHE}
    try:
        return Path(snapshot_download(repository, local_files_only=why is not None, **options))
    except OSError as error:
        raise OSError(_reason(error, why)) from None


@functools.cache
def commit_of_dataset(repository: str, revision: str | None) -> str:
    """The commit that a branch, tag or commit of a data set is now; of the newest one for None.

    The answer holds for the process, so that all files of a run are of one commit.
    Where the hub is silent, the commit that the cache has for the name. Raises `OSError`, one line.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    why = silence()
    if why is None:
        try:
            found = HfApi(constants.ENDPOINT).dataset_info(repository, revision=revision, timeout=PATIENCE * 3).sha
        except Exception as error:  # as in `silence`; a name that there is not is among them
            raise OSError(_reason(error, None)) from None
        if found:
            return str(found)
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="dataset")
    try:
        return (folder / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise OSError(_reason(error, why)) from None


def _reason(error: Exception, why: str | None) -> str:
    if why is not None:
        return f"{why}, and the cache does not have it"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
