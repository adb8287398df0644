import os
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.jsonl import read_rows
from tasks.reading import lines_of, open_regular, read_regular, read_text

pytestmark = pytest.mark.timeout(20)


@pytest.fixture(params=["pipe", "endless", "folder"])
def strange(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Something that is no regular file under the name of one."""
    path = tmp_path / "d.jsonl"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    return path


def test_what_is_no_file_is_named_and_not_waited_for(strange: Path) -> None:
    for read in (read_regular, read_text, lambda path: read_rows(path, ())):
        with pytest.raises(UserError, match=r"d\.jsonl'( is no regular file|: Is a directory)"):
            read(strange)


def test_a_file_that_is_too_large_is_named(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x" * 101)
    assert read_regular(path, 101) == b"x" * 101
    with pytest.raises(UserError, match=r"big' has more than 100 bytes"):
        read_regular(path, 100)


def test_a_sparse_file_of_a_terabyte_does_not_fill_memory(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"big' line 1 has more than 67,108,864 bytes"):
        read_rows(path, ())


def test_lines_have_their_number_and_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"ab\n\nabcd")
    with open_regular(path) as file:
        assert list(lines_of(file, "here", 4)) == [b"ab\n", b"\n", b"abcd"]
    with open_regular(path) as file, pytest.raises(UserError, match="'here' line 3 has more than 3 bytes"):
        list(lines_of(file, "here", 3))


def test_a_text_has_newlines_of_one_kind_and_marks_for_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"a\r\nb\rc\n\xff")
    assert read_text(path) == "a\nb\nc\n\ufffd" == path.read_text(encoding="utf-8", errors="replace")
