import pytest

from pipeline.distributed import Workers


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
