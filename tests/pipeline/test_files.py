import errno
import json
import os
from pathlib import Path

import pytest

from pipeline import files
from tasks.errors import UserError


def test_a_link_is_refused_and_what_it_points_at_stays(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "r.json").symlink_to(victim)
    (tmp_path / ".s.json.tmp").symlink_to(victim)
    (tmp_path / "dangling.json").symlink_to(tmp_path / "new")
    for name in ("r.json", "s.json", "dangling.json"):
        with pytest.raises(UserError, match=r"is a symbolic link, which is not followed"):
            files.write_json(tmp_path / name, 3)
    for name in ("r.json", "dangling.json"):
        with pytest.raises(UserError, match="is a symbolic link"):
            files.open_to_write(tmp_path / name, os.O_APPEND)
    assert victim.read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_a_link_that_appears_after_the_look_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "a").symlink_to(victim)
    monkeypatch.setattr(files, "refuse_link", lambda path: None)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        files.open_to_write(tmp_path / "a", os.O_TRUNC)
    assert victim.read_text() == "mine"


def test_a_pipe_does_not_stop_a_run_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for call in (files.read_json, lambda path: files.open_to_write(path, 0)):
        with pytest.raises(UserError, match="is no regular file"):
            call(tmp_path / "pipe")


def test_a_full_disk_is_named_with_its_file_and_the_old_content_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.json"
    files.write_json(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left .*r\.json"):
        files.write_json(path, "new")
    assert json.loads(path.read_text()) == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_lone_surrogates_are_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    files.write_json(path, {"a\ud800": "é\udfff"})
    assert files.read_json(path) == {"a\ud800": "é\udfff"}
    path.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "[1e999]", "[" * 100_000, "9" * 5000, "\x00", '"\xff', ""])
def test_what_is_no_json_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="is not valid JSON") as error:
        files.read_json(path)
    assert "\n" not in str(error.value)
