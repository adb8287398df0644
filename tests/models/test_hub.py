"""A hub of our own on this machine, and one that is not there."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typing_extensions import override

from models import hub

ROOT = Path(__file__).parents[2]
FIRST, SECOND = "1" * 40, "2" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """One data set with the branch main, whose file `x.jsonl` says at which commit it is."""

    main = FIRST

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        commit, content = self.main, b"hello"
        if parts[:2] == ["api", "datasets"]:
            content = json.dumps({"id": "a/b", "sha": self.main, "siblings": []}).encode()
        elif "resolve" in parts:
            asked = parts[parts.index("resolve") + 1]
            commit = self.main if asked == "main" else asked
            content = commit.encode()
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{commit}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    @override
    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty cache, and nothing remembered of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "PAUSES", (0.0, 0.01, 0.01))
    forget()
    yield
    forget()


def forget() -> None:
    hub.silence.cache_clear()
    hub.commit_of_dataset.cache_clear()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    class Ours(Hub):
        pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ours) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        yield Ours
        running.shutdown()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    return constants.ENDPOINT


def test_a_hub_that_answers(server: type[Hub]) -> None:
    assert hub.silence() is None


def test_a_hub_that_is_not_there_is_asked_three_times(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    said = hub.silence()
    assert said is not None
    assert f"the hub ({nobody}) does not answer after 3 tries" in said
    assert "refused" in said
    assert slept == [0.0, 0.01, 0.01]
    assert hub.silence() == said
    assert len(slept) == 3, "the answer is remembered"


def test_files_of_a_run_are_of_one_commit(server: type[Hub]) -> None:
    commit = hub.commit_of_dataset("a/b", None)
    assert commit == FIRST
    server.main = SECOND
    assert hub.commit_of_dataset("a/b", None) == FIRST, "it holds for the process"
    assert hub.file_of_dataset("a/b", "x.jsonl", commit).read_text() == FIRST
    forget()
    assert hub.commit_of_dataset("a/b", None) == SECOND
    assert hub.commit_of_dataset("a/b", FIRST) == FIRST, "a commit is itself"


def test_the_cache_serves_where_the_hub_is_silent(server: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.file_of_dataset("a/b", "x.jsonl", "main")
    forget()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert hub.commit_of_dataset("a/b", None) == FIRST
    assert hub.file_of_dataset("a/b", "x.jsonl", FIRST).read_text() == FIRST
    with pytest.raises(OSError, match=r"does not answer after 3 tries .*, and the cache does not have it"):
        hub.file_of_dataset("a/b", "y.jsonl", FIRST)
    with pytest.raises(OSError, match=r"does not answer after 3 tries .*, and the cache does not have it"):
        hub.commit_of_dataset("c/d", None)


@pytest.mark.parametrize("data", [False, True], ids=["model", "data"])
def test_a_run_without_the_hub_ends_in_one_line_soon_after_the_last_try(tmp_path: Path, data: bool) -> None:
    (tmp_path / "c.toml").write_text(
        f'model = "{"tiny" if data else "nobody/nothing"}"\nexp_name = "x"\nmethod = "repro_original"\n'
        'task = "longbench"\nmax_pe = 1024\n'
    )
    endpoint = f"http://127.0.0.1:{free_port()}"
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(ROOT / "pred.py"), "--cfg", "c.toml"],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"the hub ({endpoint}) does not answer after 3 tries" in done.stderr
    assert ("'THUDM/LongBench'" if data else "cannot load the model 'nobody/nothing'") in done.stderr
    assert not (tmp_path / "results").exists()
