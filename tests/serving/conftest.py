"""Engines of vLLM on the embedded model, and what this repository's own models say to the same prompts.

Nothing here imports vLLM before a test asks for an engine: elsewhere these tests are collected, and skipped.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

from tests.conftest import TINY
from tests.serving.engines import GALI, Engine, Reference
from tests.serving.servers import serving

HERE = Path(__file__).parent

# From less than the window of 512 to almost 16 of them, mostly odd; the last block of a cache is full, or not.
LENGTHS = (100, 211, 256, 300, 447, 511, 512, 513, 640, 777, 900, 1024, 1201, 1500, 1777, 2048, 2501, 3001, 4099, 8000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skipped, and say so, where there is no vLLM."""
    absent = [name for name in ("vllm", "vllm_gali") if importlib.util.find_spec(name) is None]
    for item in items:
        if HERE in item.path.parents and "vllm" in item.keywords and absent:
            item.add_marker(
                pytest.mark.skip(reason=f"{' and '.join(absent)} cannot be imported; make test-vllm has them")
            )


@pytest.fixture(scope="session")
def make_engine() -> Iterator[Callable[..., Engine]]:
    """make_engine(gali=settings or None, **options of vllm.LLM); what is still open at the end is closed."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.pop("VLLM_ALLOW_LONG_MAX_MODEL_LEN", None)
    opened: list[Engine] = []

    def make(gali: dict[str, Any] | None, **options: Any) -> Engine:
        opened.append(Engine(gali, **options))
        return opened[-1]

    yield make
    for engine in opened:
        if engine.llm is not None:
            engine.close()


@pytest.fixture(scope="session")
def reference() -> Reference:
    """This repository's model, with whatever method is asked for."""
    return Reference()


@pytest.fixture(scope="session")
def prompts(reference: Reference) -> list[list[int]]:
    """20 prompts of 100 to 8,000 tokens, no two with a beginning in common."""
    text = reference.tokens("\n".join(topics[name] for name in sorted(topics)))
    places = [7919 * number for number in range(len(LENGTHS))]
    return [text[place : place + length] for place, length in zip(places, LENGTHS, strict=True)]


@pytest.fixture(scope="session")
def expected(reference: Reference, prompts: Sequence[list[int]]) -> list[list[int]]:
    """What GALI says to them here."""
    return reference.continuations(GALI, prompts)


@pytest.fixture(scope="session")
def gali(make_engine: Callable[..., Engine]) -> Engine:
    """The engine of most tests: chunked prefill of 256 tokens, prefix caching on."""
    return make_engine(GALI)


@pytest.fixture(scope="session")
def stock(make_engine: Callable[..., Engine], gali: Engine) -> Engine:
    """The stock engine, begun in the same process after one with GALI; its rotary tables are long enough."""
    return make_engine(None, hf_overrides={"max_position_embeddings": gali.max_model_len})


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with GALI."""
    with serving(GALI, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


assert TINY.is_dir()
assert torch.get_default_dtype() == torch.float32
