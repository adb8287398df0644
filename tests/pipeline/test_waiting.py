"""In which portions records are handed out, and what becomes of a dead worker's."""

from typing import Any

import pytest

from pipeline.batches import POOL_RECORDS
from pipeline.waiting import MOST_TRIES, Queue, Unit
from tasks.base import Record
from tests.pipeline.fake_task import FakeTask


class Documents(FakeTask):
    """Records of data set "two" have a document."""

    def document(self, dataset: str, record: Record) -> str | None:
        return record["text"] if dataset == "two" else None


def records(count: int, **keys: Any) -> list[Record]:
    return [{"id": str(number), **keys} for number in range(count)]


def portions(queue: Queue, rows: int, workers: int, *, shares: bool = False) -> list[tuple[str, list[str]]]:
    found = []
    while (unit := queue.take(rows, workers, shares=shares)) is not None:
        found.append((unit.dataset, [record["id"] for record in unit.records]))
    assert not queue
    return found


def test_one_by_one_in_order() -> None:
    queue = Queue(FakeTask(), {"one": records(2), "none": [], "two": records(1)})
    assert len(queue) == 3
    assert portions(queue, 1, 4) == [("one", ["0"]), ("one", ["1"]), ("two", ["0"])]
    assert portions(Queue(FakeTask(), {}), 1, 4) == []


def test_records_of_one_document_stay_together_where_it_is_read_once() -> None:
    texts = [{"id": str(number), "text": text} for number, text in enumerate("aabccc")]
    todo = {"one": records(2), "two": texts}
    assert [found for _, found in portions(Queue(Documents(), todo), 1, 4, shares=True)] == [
        ["0"], ["1"], ["0", "1"], ["2"], ["3", "4", "5"],
    ]  # fmt: skip
    assert len(portions(Queue(Documents(), todo), 1, 4)) == 8


@pytest.mark.parametrize(
    ("count", "rows", "workers", "sizes"),
    [
        (7, 3, 4, [3, 3, 1]),
        (100, 4, 2, [28, 20, 16, 12, 8, 4, 4, 4, 4]),
        (9, 4, 1, [8, 1]),
    ],
)
def test_batches_are_whole_and_portions_shrink(count: int, rows: int, workers: int, sizes: list[int]) -> None:
    found = portions(Queue(FakeTask(), {"one": records(count)}), rows, workers)
    assert [len(ids) for _, ids in found] == sizes
    assert [identity for _, ids in found for identity in ids] == [str(number) for number in range(count)]


def test_a_portion_is_not_larger_than_what_batches_are_made_of() -> None:
    unit = Queue(FakeTask(), {"one": records(5000)}).take(32, 1, shares=False)
    assert unit is not None
    assert len(unit.records) == POOL_RECORDS


def test_the_record_that_a_worker_died_over_comes_last_and_the_others_keep_their_place() -> None:
    queue = Queue(Documents(), {"two": records(3, text="a") + records(1, text="b")})
    unit = queue.take(1, 2, shares=True)
    assert unit is not None
    assert len(unit.records) == 3
    assert queue.put_back(unit, unit.records[1:]) == []
    assert [ids for _, ids in portions(queue, 1, 2, shares=True)] == [["2"], ["0"], ["1"]]


def test_of_a_batch_any_may_be_the_one() -> None:
    queue = Queue(FakeTask(), {"one": records(6)})
    unit = queue.take(3, 1, shares=False)
    assert unit is not None
    assert queue.put_back(unit, unit.records[1:]) == []
    assert [ids for _, ids in portions(queue, 3, 1)] == [["3", "4", "5"], ["1"], ["2"]]


def test_a_record_is_given_up_in_the_end() -> None:
    [record] = records(1)
    queue = Queue(FakeTask(), {"one": [record]})
    for _ in range(MOST_TRIES - 1):
        unit = queue.take(1, 1, shares=False)
        assert unit == Unit("one", [record], 1)
        assert queue.put_back(unit, [record]) == []
    unit = queue.take(1, 1, shares=False)
    assert unit is not None
    assert queue.put_back(unit, [record]) == [record]
    assert not queue
    assert queue.take(1, 1, shares=False) is None
