import pytest
import torch

from pipeline import distributed
from pipeline.distributed import Workers, threads_for


@pytest.mark.parametrize(
    ("tensor_parallel", "share", "writes"),
    [(False, (3, 4), True), (True, (0, 1), False)],
)
def test_shares_of_the_records(
    monkeypatch: pytest.MonkeyPatch, tensor_parallel: bool, share: tuple[int, int], writes: bool
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    workers = Workers(tensor_parallel=tensor_parallel)
    assert (workers.index, workers.count) == share
    assert workers.writes is writes
    assert not workers.is_main
    assert workers.processes == 4


def test_a_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with Workers(tensor_parallel=True) as workers:
        workers.barrier()
    assert (workers.index, workers.count, workers.is_main, workers.writes) == (0, 1, True, True)
    assert workers.device() is None


def test_each_process_of_a_machine_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "13")
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_RANK", "5")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert Workers().device() == "cuda:5"


@pytest.mark.parametrize(
    ("processes", "cores", "wanted", "threads"),
    [(1, 2, 2, 2), (2, 2, 2, 1), (1, 2, 64, 2), (2, 16, 16, 8), (2, 16, 1, 1), (8, 2, 2, 1), (3, 8, 8, 2)],
)
def test_processes_take_no_more_threads_than_there_are_cores(
    processes: int, cores: int, wanted: int, threads: int
) -> None:
    assert threads_for(processes, cores, wanted) == threads


def test_two_processes_on_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(distributed, "cores", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    try:
        torch.set_num_threads(6)
        distributed.share_cores()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_there_is_a_core() -> None:
    assert distributed.cores() >= 1
