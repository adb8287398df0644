"""The OpenAI server with the plug-in, on the loopback interface: requests at once, streamed, cancelled."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, TINY
from tests.serving.engines import GALI, Reference

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

HOST = "127.0.0.1"
NEW_TOKENS = 24
SECONDS_TO_START = 300
SECONDS_TO_ANSWER = 300


def free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server; it and all that it started are killed in the end."""
    import httpx

    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", HOST, "--port", str(port),
        "--model", str(TINY), "--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "4200",
        "--max-num-batched-tokens", "256", "--enforce-eager", "--kv-cache-memory-bytes", str(256 << 20),
        "--additional-config", json.dumps({"gali": GALI}),
    ]  # fmt: skip
    # What these tests themselves set for kernels and engines in one process is not the server's.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("VLLM_ENABLE_V1_MULTIPROCESSING", "TRITON_INTERPRET", "VLLM_ALLOW_LONG_MAX_MODEL_LEN")
    } | {"VLLM_NO_USAGE_STATS": "1"}  # fmt: skip
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as written:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=written, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"http://{HOST}:{port}"
    try:
        wait_until_healthy(httpx, address, process, log)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def wait_until_healthy(httpx: Any, address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                return
        time.sleep(1)
    pytest.fail(f"the server did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")


async def stream(client: Any, prompt: list[int], stop_after: int | None = None) -> list[int]:
    """New tokens of a streamed completion; the connection is closed after `stop_after` pieces."""
    body = {
        "model": "tiny", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True,
        "stream": True, "return_token_ids": True,
    }  # fmt: skip
    found: list[int] = []
    pieces = 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            text = line.removeprefix("data: ")
            if not text or text == "[DONE]":
                continue
            for choice in json.loads(text)["choices"]:
                found += choice.get("token_ids") or []
            pieces += 1
            if pieces == stop_after:
                break
    return found


def streams(address: str, prompts: list[list[int]], cancelled: int | None = None) -> list[list[int]]:
    """All at once; that of number `cancelled` is given up after its first piece."""
    import httpx

    async def run() -> list[list[int]]:
        async with httpx.AsyncClient(base_url=address, timeout=SECONDS_TO_ANSWER) as client:
            jobs = [stream(client, p, 1 if number == cancelled else None) for number, p in enumerate(prompts)]
            return list(await asyncio.wait_for(asyncio.gather(*jobs), SECONDS_TO_ANSWER))

    return asyncio.run(run())


@pytest.fixture(scope="module")
def mixed(prompts: list[list[int]]) -> list[list[int]]:
    """Ten prompts of 100 to 4,099 tokens."""
    return [prompts[number] for number in (0, 18, 2, 15, 7, 9, 13, 5, 11, 16)]


@pytest.fixture(scope="module")
def answers(reference: Reference, mixed: list[list[int]]) -> list[list[int]]:
    return reference.continuations(GALI, mixed, tokens=NEW_TOKENS)


def test_ten_streams_at_once(server: str, mixed: list[list[int]], answers: list[list[int]]) -> None:
    assert streams(server, mixed) == answers


@pytest.mark.parametrize("cancelled", [1, 4])
def test_a_cancelled_request_leaves_the_others_right(
    server: str, mixed: list[list[int]], answers: list[list[int]], cancelled: int
) -> None:
    shifted = [prompt[3:] + prompt[:3] for prompt in mixed[:1]] + mixed[1:]  # one that no cache holds yet
    found = streams(server, shifted, cancelled)
    assert found[cancelled] == answers[cancelled][: len(found[cancelled])]
    assert len(found[cancelled]) < NEW_TOKENS
    others = [number for number in range(1, len(mixed)) if number != cancelled]
    assert [found[number] for number in others] == [answers[number] for number in others]
    assert streams(server, mixed[:2]) == answers[:2], "the server goes on"
