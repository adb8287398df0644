import pytest
import torch

from models.DPI.loading import default_dtype
from pipeline.config import ExperimentConfig
from pipeline.distributed import Workers
from pipeline.model_loader import EngineLoader, resolve_dtype
from tasks.errors import UserError
from tests.pipeline.small import config


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({"device": "cpu"}, torch.float32),
        ({"device": "cuda:0"}, torch.bfloat16),
        ({"device": "mps"}, torch.float32),
        ({"device": "cuda", "dtype": "fp32"}, torch.float32),
        ({"device": "cpu", "dtype": "fp16"}, torch.float16),
        ({}, default_dtype(None)),
    ],
)
def test_the_dtype_is_the_loaders(keys: dict[str, str], dtype: torch.dtype) -> None:
    assert resolve_dtype(config(**keys)) == dtype


def test_a_device_that_nobody_knows_is_one_line() -> None:
    with pytest.raises(UserError, match="device is 'gpu'"):
        resolve_dtype(config(device="gpu"))


def test_an_engine_serves_the_next_experiment_with_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[ExperimentConfig] = []

    def load(self: EngineLoader, cfg: ExperimentConfig) -> object:
        loaded.append(cfg)
        return object()

    monkeypatch.setattr(EngineLoader, "_load", load)
    load_engine = EngineLoader(Workers())
    first = load_engine(config(times=1))
    assert load_engine(config(times=2, limit=3, exp_name="other")) is first
    assert load_engine(config(task="pg19")) is first
    for keys in ({"seed": 1}, {"max_pe": 4096}, {"ori_max_position_embeddings": 64}, {"params": {"a": 1}}):
        before = len(loaded)
        load_engine(config(**keys))
        assert len(loaded) == before + 1, keys
