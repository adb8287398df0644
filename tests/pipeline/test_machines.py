"""What the processes of a run compare, and how long they wait for what another machine wrote."""

import logging
import threading
import time
from pathlib import Path
from typing import TypeVar

import pytest

from pipeline import store
from pipeline.experiment import check_shared
from pipeline.runner import digest
from tasks.errors import UserError
from tests.pipeline.fake_task import FakeWorkers

T = TypeVar("T")


class Other(FakeWorkers):
    """The second of two processes, which hears from the first what is given."""

    def __init__(self, first: object) -> None:
        super().__init__(rank=1, count=2)
        self.first = first

    def from_first(self, make: object) -> bytes:  # type: ignore[override]
        assert isinstance(self.first, bytes)
        return self.first

    def gather(self, value: T) -> list[T]:
        return [(self.first, "a"), (value[0], "b")]  # type: ignore[index, list-item]


def test_processes_that_have_different_things_are_refused() -> None:
    Other("x").agree("records", "x", "do something")
    with pytest.raises(
        UserError, match=r"^the machines of this run have different records: a has 'x', b 'y'; do something"
    ):
        Other("x").agree("records", "y", "do something")


def test_a_folder_that_is_not_the_first_processs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SECONDS_OF_NETWORK", 0.3)
    said = r"' on b is not the folder of the first process; give --results a folder that all machines share"

    class Seen(Other):
        def gather(self, value: T) -> list[T]:
            return [("a", True), ("b", value[1])]  # type: ignore[index, list-item]

    with pytest.raises(UserError, match=said):
        check_shared(tmp_path, Seen(b"{}"))
    (tmp_path / store.RUN_FILE).write_text("{ }")
    with pytest.raises(UserError, match=said):
        check_shared(tmp_path, Seen(b"{}"))
    late = threading.Timer(0.1, lambda: (tmp_path / store.RUN_FILE).write_text("{}"))
    late.start()
    check_shared(tmp_path, Seen(b"{}"))
    late.join()


def test_parts_of_other_machines_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "SECONDS_OF_NETWORK", 5.0)
    part = store.part_file(tmp_path, "one", 1)
    part.write_bytes(b"1234")
    late = threading.Timer(0.2, lambda: part.write_bytes(b"12345"))
    late.start()
    store.wait_for(tmp_path, {part.name: 5})
    assert part.read_bytes() == b"12345"
    assert not caplog.records
    late.join()
    monkeypatch.setattr(store, "SECONDS_OF_NETWORK", 0.0)
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING):
        store.wait_for(tmp_path, {".part-2-one.jsonl": 1})
    assert "not seen here yet" in caplog.text
    assert time.monotonic() - begin < 4


def test_records_are_the_same_where_their_files_are(tmp_path: Path) -> None:
    books = [tmp_path / "a" / "x.txt", tmp_path / "b" / "x.txt"]
    for book in books:
        book.parent.mkdir()
        book.write_text("text")
    one, two = ([{"id": "x", "path": book}] for book in books)
    assert digest({"d": one}) == digest({"d": two})
    books[1].write_text("another")
    assert digest({"d": one}) != digest({"d": two})
    assert digest({"d": [{"id": "x"}]}) != digest({"e": [{"id": "x"}]})
    assert digest({"d": [{"id": "x", "text": "\ud800"}]}) != digest({"d": [{"id": "x", "text": "\ud801"}]})
