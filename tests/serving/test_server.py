"""The OpenAI server with the plug-in, on the loopback interface: requests at once, streamed, cancelled."""

import asyncio
import json
from typing import Any

import pytest

from tests.serving.engines import GALI, Reference

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

NEW_TOKENS = 24
# Of a request that is given up after its first piece, in which a busy machine may put several.
NEVER_READ = 4 * NEW_TOKENS
SECONDS_TO_ANSWER = 300


async def stream(client: Any, prompt: list[int], stop_after: int | None = None) -> list[int]:
    """New tokens of a streamed completion; the connection is closed after `stop_after` pieces."""
    body = {
        "model": "tiny", "prompt": prompt, "max_tokens": NEVER_READ if stop_after else NEW_TOKENS, "temperature": 0,
        "ignore_eos": True, "stream": True, "return_token_ids": True,
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
    assert found[cancelled][:NEW_TOKENS] == answers[cancelled][: len(found[cancelled])]
    assert len(found[cancelled]) < NEVER_READ
    others = [number for number in range(1, len(mixed)) if number != cancelled]
    assert [found[number] for number in others] == [answers[number] for number in others]
    assert streams(server, mixed[:2]) == answers[:2], "the server goes on"
