"""A server of OpenAI's API over HTTP: JSON there and back, tried again where that may help, and nothing else.

It knows nothing of models. Redirects are not followed, so that a key goes nowhere but to the server that was named, and
no other kind of URL is opened.
"""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from pipeline.text import printable
from tasks.errors import UserError

logger = logging.getLogger(__name__)

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further try."""
PATIENCE = 3600.0
"""Seconds without a byte of an answer: a batch of long prompts takes a while, and is answered when it is done."""
KEY = "OPENAI_API_KEY"
"""The environment variable that holds a server's key, where it wants one."""

_AGAIN = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_MOST_BYTES = 1 << 30
"""Of an answer. One of log-probabilities has about 100 for each token."""
_MOST_SAID = 500
"""Characters of what a server says of an error."""


class ServerError(RuntimeError):
    """An answer is an error, or none that can be read. The message is one line."""


def check_base_url(url: str) -> str:
    """The URL without a slash at its end, and with OpenAI's `/v1` where it has no path. Raises `ValueError`."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for what is no number
    except ValueError as error:
        raise ValueError(f"base_url is no URL: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"base_url holds a name or a password, which files must not; set {KEY} in the environment")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url = {url!r} must begin with http:// or https://, and name a host")
    try:
        parts.hostname.encode("idna")
    except UnicodeError:
        raise ValueError(f"base_url = {url!r}: {parts.hostname!r} is no host's name") from None
    if parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"base_url = {url!r} must be a plain address, such as http://127.0.0.1:8000/v1")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


class Client:
    """Asks one server, one question at a time."""

    def __init__(self, base_url: str) -> None:
        """base_url: as `check_base_url` returns it. Raises `UserError` for a key that cannot be sent."""
        self.base_url = base_url
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = os.environ.get(KEY, "").strip()
        if not key.isascii() or not key.isprintable():
            raise UserError(f"{KEY} holds characters that no key has")
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._opener = urllib.request.OpenerDirector()
        nearby = urlsplit(base_url).hostname in ("127.0.0.1", "::1", "localhost")
        self._opener.add_handler(urllib.request.ProxyHandler({} if nearby else None))
        for handler in (
            urllib.request.HTTPHandler,
            urllib.request.HTTPSHandler,
            urllib.request.HTTPDefaultErrorHandler,
            urllib.request.HTTPErrorProcessor,
        ):
            self._opener.add_handler(handler())

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the server answers to a body (POST), or without one (GET), as a JSON object.

        What a busy server says, and a connection that fails, is tried again with growing pauses. Raises `ServerError`
        for an answer that is an error; `UserError`, which ends a run, where there is none: nobody is there, or nobody
        may ask.
        """
        data = None if body is None else json.dumps(body).encode()
        for pause in (*PAUSES, None):
            try:
                return self._once(path, data)
            except urllib.error.HTTPError as error:
                said = self._said(error)
                if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                    raise UserError(f"{self.base_url} refuses to answer ({said}); is {KEY} set?") from None
                if error.code not in _AGAIN or pause is None:
                    raise ServerError(said) from None
            except TimeoutError:  # one of connecting is a URLError
                raise ServerError(f"no answer within {PATIENCE:g} s") from None
            except (OSError, HTTPException) as error:
                said = _line(getattr(error, "reason", None) or f"{type(error).__name__}: {error}".strip(": "))
                if pause is None:
                    raise UserError(
                        f"{self.base_url} does not answer after {len(PAUSES) + 1} tries ({said}); "
                        "start the server, and the same command goes on from here"
                    ) from None
            logger.warning("%s: %s; tried again in %g s", self.base_url, said, pause)
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _once(self, path: str, data: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.base_url}/{path}", data, self._headers)
        with self._opener.open(request, timeout=PATIENCE) as answer:
            read = answer.read(_MOST_BYTES + 1)
        if len(read) > _MOST_BYTES:
            raise ServerError(f"the answer is larger than {_MOST_BYTES:,} bytes")
        try:
            found = json.loads(read)
        except (ValueError, RecursionError):
            raise ServerError(f"the answer to {path} is no JSON: {_line(read[:_MOST_SAID])}") from None
        if not isinstance(found, dict):
            raise ServerError(f"the answer to {path} is no JSON object: {_line(read[:_MOST_SAID])}")
        return found

    @staticmethod
    def _said(error: urllib.error.HTTPError) -> str:
        """An error's status, and what the server says of it."""
        with error:
            try:
                read = error.read(_MOST_BYTES)
            except (OSError, HTTPException):
                read = b""
        try:
            message = json.loads(read)["error"]["message"]
        except (ValueError, RecursionError, LookupError, TypeError):
            message = read
        return f"HTTP {error.code}: {_line(message) or error.reason}"


def _line(said: object) -> str:
    """One printable line of bounded length."""
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    return printable(" ".join(text.split()))[:_MOST_SAID]
