"""A server of OpenAI's API that answers as vLLM does, over a model of this repository; it errs as it is told."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import torch

Fault = Callable[[BaseHTTPRequestHandler], None]


def status(code: int, message: str = "busy", headers: dict[str, str] | None = None) -> Fault:
    """Answer with an error."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        send(handler, code, json.dumps({"error": {"message": message}}).encode(), headers)

    return answer


def raw(content: bytes) -> Fault:
    """Answer with these bytes."""
    return lambda handler: send(handler, 200, content)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True


def send(handler: BaseHTTPRequestHandler, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
    handler.send_response(code)
    for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


class FakeServer:
    """A context manager; `url` is its base_url. Without a model it answers with `answer` alone.

    says: its system_fingerprint. faults: what is done instead of the next answers, one after another. tamper: changes
    an answer of completions. asked: (path, body, headers) of all requests.
    """

    def __init__(self, model: Any = None, says: str | None = None, max_model_len: int = 2048) -> None:
        self.model = model
        self.says = says
        self.max_model_len = max_model_len
        self.faults: deque[Fault | None] = deque()
        self.tamper: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer
        self.asked: list[tuple[str, Any, dict[str, str]]] = []

    def __enter__(self) -> FakeServer:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.asked.append((self.path, json.loads(data) if data else None, dict(self.headers)))
                if server.faults and (fault := server.faults.popleft()) is not None:
                    fault(self)
                    return
                send(self, 200, json.dumps(server.answer(*server.asked[-1][:2])).encode())

            do_GET = do_POST = handle_one

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def answer(self, path: str, body: Any) -> dict[str, Any]:
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "served", "max_model_len": self.max_model_len}]}
        assert path == "/v1/completions"
        choices = [self._choice(number, prompt, body) for number, prompt in enumerate(body["prompt"])]
        return self.tamper({"choices": choices[::-1], "system_fingerprint": self.says})

    @torch.inference_mode()
    def _choice(self, index: int, prompt: list[int], body: dict[str, Any]) -> dict[str, Any]:
        ids = torch.tensor([prompt])
        found = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=body["max_tokens"],
            min_new_tokens=body.get("min_tokens"),
            do_sample=False,
            eos_token_id=body.get("stop_token_ids") or None,
            pad_token_id=0,
        )
        row = found[0, len(prompt) :].tolist()
        choice: dict[str, Any] = {
            "index": index,
            "token_ids": row,
            "prompt_token_ids": prompt,
            "logprobs": {"token_logprobs": [-0.5] * len(row)},
            "prompt_logprobs": None,
        }
        if (last := body.get("allowed_token_ids")) is not None:
            choice["token_ids"] = last
            choice["logprobs"]["token_logprobs"] = [self.model(ids).logits[0, -1].log_softmax(-1)[last].item()]
        if body.get("prompt_logprobs") is not None:
            scores = self.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()
            entries = [{str(token): {"logprob": score}} for token, score in zip(prompt[1:], scores, strict=True)]
            choice["prompt_logprobs"] = [None, *entries]
        return choice
