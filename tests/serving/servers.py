"""Programs beside the tests: vLLM's OpenAI server on the loopback interface, and others. None outlives a test."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, TINY

HOST = "127.0.0.1"
SECONDS_TO_START = 300
# Below those that a system gives to outgoing connections, so that none of these takes a port that was found free.
PORTS = range(20_000, 30_000)
# What these tests themselves set for kernels and engines in one process is not for others.
LEFT_OUT = ("VLLM_ENABLE_V1_MULTIPROCESSING", "TRITON_INTERPRET", "VLLM_ALLOW_LONG_MAX_MODEL_LEN")


@contextlib.contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A command in the repository; it and all that it started are killed in the end, even if the tests are."""
    environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serving.guard", *command],
        cwd=ROOT,
        env=environment | {"VLLM_NO_USAGE_STATS": "1"} | options.pop("env", {}),
        stdin=subprocess.PIPE,
        **options,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def free_port() -> int:
    for port in random.sample(PORTS, 100):
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind((HOST, port))
            return port
    raise OSError("no port is free")


@contextlib.contextmanager
def serving(gali: dict[str, Any], log: Path, *more: str) -> Iterator[str]:
    """The address of a server of the embedded model in fp32."""
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", HOST, "--port", str(port),
        "--model", str(TINY), "--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "4200",
        "--max-num-batched-tokens", "256", "--enforce-eager", "--kv-cache-memory-bytes", str(256 << 20),
        "--additional-config", json.dumps({"gali": gali}), *more,
    ]  # fmt: skip
    with log.open("w") as written, running(command, stdout=written, stderr=subprocess.STDOUT) as process:
        address = f"http://{HOST}:{port}"
        _wait_until_healthy(address, process, log)
        yield address


def _wait_until_healthy(address: str, process: subprocess.Popen[Any], log: Path) -> None:
    import httpx

    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")
