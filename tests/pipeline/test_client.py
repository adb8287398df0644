import json
import logging
import socket
from collections.abc import Iterator

import pytest

from pipeline import client
from pipeline.client import Client, ServerError, check_base_url
from tasks.errors import UserError
from tests.pipeline.fake_server import FakeServer, hang_up, raw, status


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.delenv(client.KEY, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as found:
        yield found


@pytest.mark.parametrize("busy", [*(status(code) for code in (408, 429, 502, 503, 504)), hang_up])
def test_what_may_pass_is_tried_again(server: FakeServer, busy: object, caplog: pytest.LogCaptureFixture) -> None:
    server.faults.extend([busy, busy, busy])  # type: ignore[list-item]
    with caplog.at_level(logging.WARNING):
        assert Client(server.url).ask("models")["data"][0]["max_model_len"] == 2048
    assert len(server.asked) == 4
    assert caplog.text.count("tried again in 0 s") == 3


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(400, "too long\nby far"), "HTTP 400: too long by far"),
        (status(404, "no such model"), "HTTP 404: no such model"),
        (status(500, "out of range"), "HTTP 500: out of range"),
        (status(302, "", {"Location": "http://127.0.0.1:9/v1/models"}), "HTTP 302: Found"),
        (raw(b"<html>"), "no JSON: <html>"),
        (raw(b"[" * 100_000), r"no JSON: \[\["),
        (raw(b"[1]"), "no JSON object"),
        (raw(b"\xff\x1b[31m"), "no JSON: "),
    ],
)
def test_what_will_not_pass_is_an_error_at_once(server: FakeServer, fault: object, said: str) -> None:
    server.faults.append(fault)  # type: ignore[arg-type]
    with pytest.raises(ServerError, match=said) as error:
        Client(server.url).ask("models")
    assert len(server.asked) == 1
    assert str(error.value).isprintable()


def test_a_server_that_stays_busy_is_the_records_error(server: FakeServer) -> None:
    server.faults.extend([status(503, "full")] * 9)
    with pytest.raises(ServerError, match="HTTP 503: full"):
        Client(server.url).ask("models")
    assert len(server.asked) == 4


def test_pauses_grow(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(client, "PAUSES", (1.0, 2.0, 4.0))
    monkeypatch.setattr("time.sleep", slept.append)
    server.faults.extend([status(503)] * 3)
    Client(server.url).ask("models")
    assert slept == [1.0, 2.0, 4.0]


def test_nobody_there_ends_the_run() -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{found.getsockname()[1]}/v1"
        with pytest.raises(UserError, match=r"does not answer after 4 tries \(.*refused.*\); start the server"):
            Client(url).ask("models")


def test_no_answer_in_time_is_the_records_error(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PATIENCE", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ServerError, match=r"no answer within 0\.2 s"):
            Client(f"http://127.0.0.1:{silent.getsockname()[1]}/v1").ask("models")


def test_an_answer_is_read_up_to_a_bound(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MOST_BYTES", 20)
    with pytest.raises(ServerError, match="larger than 20 bytes"):
        Client(server.url).ask("models")


def test_the_key_comes_from_the_environment(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    Client(server.url).ask("models")
    monkeypatch.setenv(client.KEY, "sk-123\n")
    Client(server.url).ask("models")
    assert [headers.get("Authorization") for _, _, headers in server.asked] == [None, "Bearer sk-123"]
    for key in ("sk\n123", "schlüssel"):
        monkeypatch.setenv(client.KEY, key)
        with pytest.raises(UserError, match="OPENAI_API_KEY holds characters") as error:
            Client(server.url)
        assert key not in str(error.value)


@pytest.mark.parametrize("code", [401, 403])
def test_without_the_right_key_the_run_ends(server: FakeServer, code: int) -> None:
    server.faults.append(status(code, "who are you"))
    with pytest.raises(UserError, match=f"HTTP {code}: who are you.*is OPENAI_API_KEY set"):
        Client(server.url).ask("models")


def test_a_body_is_sent_as_json(server: FakeServer) -> None:
    server.faults.append(raw(b"{}"))
    assert Client(server.url).ask("completions", {"prompt": [[1, 2]]}) == {}
    path, body, headers = server.asked[0]
    assert (path, body, headers["Content-Type"]) == ("/v1/completions", {"prompt": [[1, 2]]}, "application/json")


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("https://host/", "https://host/v1"),
        ("http://[::1]:8000/v1/", "http://[::1]:8000/v1"),
        ("https://host/behind/v1", "https://host/behind/v1"),
    ],
)
def test_base_urls(url: str, whole: str) -> None:
    assert check_base_url(url) == whole


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///etc/passwd", "must begin with http"),
        ("ftp://host/v1", "must begin with http"),
        ("127.0.0.1:8000", "must begin with http"),
        ("http://", "must begin with http"),
        ("http://host:port/v1", "no URL"),
        ("http://[::1/v1", "no URL"),
        ("http://host/v1?key=1", "plain address"),
        ("http://host/v1#a", "plain address"),
        ("http://host/a b", "plain address"),
        ("http://host/a\nb", "plain address"),
        ("http://me:secret@host/v1", "name or a password"),
    ],
)
def test_other_urls_are_refused(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        check_base_url(url)
    assert "secret" not in str(error.value)
    assert json.dumps(str(error.value))
