"""What is known before Ray is needed; tests/test_ray.py has what needs it."""

import importlib.util
from pathlib import Path

import pytest

from pipeline import ray_pool
from pipeline.ray_pool import _reason, _size, check_launcher
from tasks.errors import UserError
from tests.pipeline.small import config

CFG = Path("some.toml")


@pytest.fixture
def with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Ray were installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for name in ("RAY_ADDRESS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^--launcher ray: Ray is not installed; pip install '\.\[ray\]'$"):
        check_launcher([config()], CFG, None)
    monkeypatch.setattr(ray_pool, "INSTALLED", True)
    with pytest.raises(UserError, match=r"pip install 'gali\[ray\]'$"):
        check_launcher([config()], CFG, None)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"device_map": "auto"}, r"^some\.toml: --launcher ray gives .* and device_map = 'auto'; leave device_map out"),
        ({"tp_plan": "auto"}, "tp_plan = 'auto'; leave tp_plan out"),
        ({"device": "cuda:1"}, "device = 'cuda:1'; leave device out"),
    ],
)
@pytest.mark.usefixtures("with_ray")
def test_what_places_a_model_itself_is_refused(keys: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_launcher([config(**keys)], CFG, None)


@pytest.mark.usefixtures("with_ray")
def test_the_run_is_one_process_on_a_machine_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    check_launcher([config(), config(device="cpu")], CFG, 3)
    with pytest.raises(UserError, match="--workers 0 must be 1 or more"):
        check_launcher([config()], CFG, 0)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UserError, match="RAY_ADDRESS = 'ray://head:10001' is for Ray's remote client"):
        check_launcher([config()], CFG, None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun and accelerate launch"):
        check_launcher([config()], CFG, None)


@pytest.mark.usefixtures("with_ray")
def test_of_a_cluster_this_machine_needs_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    away = config(device="cuda", attn_impl="triton")
    with pytest.raises(UserError, match="device"):
        check_launcher([away], CFG, None)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    check_launcher([away], CFG, None)
    with pytest.raises(UserError, match=r"^some\.toml: method is 'none'"):
        check_launcher([config(method="none")], CFG, None)


@pytest.mark.parametrize(
    ("workers", "gpus", "processors", "on_gpus", "found"),
    [(0, 8, 2, True, (8, True)), (3, 8, 2, True, (3, True)), (3, 0, 4, True, (3, False)), (3, 8, 4, False, (3, False))],
)
def test_a_worker_for_each_gpu_or_as_many_as_are_asked_for(
    workers: int, gpus: int, processors: int, on_gpus: bool, found: tuple[int, bool]
) -> None:
    assert _size(workers, gpus, processors, on_gpus) == found


def test_more_workers_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(UserError, match="--workers 9: there are 8 GPUs"):
        _size(9, 8, 99, True)
    with pytest.raises(UserError, match="--workers 9: there are 4 processors"):
        _size(9, 8, 4, False)
    with pytest.raises(UserError, match="--workers N"):
        _size(0, 0, 4, True)


def test_a_death_is_said_in_one_line() -> None:
    long = "The actor died.\n\tclass_name: X\nWorker exit type: SYSTEM_ERROR Worker exit detail: killed by\n SIGKILL."
    assert _reason(RuntimeError(long)) == "RuntimeError: killed by SIGKILL."
    assert _reason(RuntimeError("a traceback\n\n  ImportError:  no torch\n")) == "RuntimeError: ImportError: no torch"
    assert _reason(RuntimeError()) == "RuntimeError: no reason is known"
