import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from models.DPI import dpi
from models.DPI.loading import default_dtype
from pipeline.config import ExperimentConfig
from pipeline.distributed import Workers
from pipeline.dry_run import count_prompts
from pipeline.model_loader import EngineLoader, read_model_config, resolve_dtype, resolve_window
from tasks.errors import UserError
from tests.pipeline.small import config, save_model


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def test_whatever_is_wrong_with_a_models_files_is_one_line_with_its_cause(folder: Path, tmp_path: Path) -> None:
    for number, (name, content) in enumerate(
        [
            ("config.json", b"{"),
            ("config.json", b"[]"),
            ("config.json", b'{"model_type": 3}'),
            ("config.json", b"[" * 100_000),
            ("tokenizer.json", b"{}"),
            ("model.safetensors", (folder / "model.safetensors").read_bytes()[:-100]),
            ("model.safetensors", b""),
            ("model.safetensors", b"\xff" * 64),
        ]
    ):
        model = tmp_path / str(number)
        shutil.copytree(folder, model)
        (model / name).write_bytes(content)
        cfg = config(model=str(model), device="cpu", method="repro_original")
        with pytest.raises(UserError, match=f"cannot load the model '{model}': .") as error:
            EngineLoader(Workers())(cfg)
        assert "\n" not in str(error.value)
        assert error.value.__cause__ is not None


def test_a_window_that_is_no_number_is_one_line(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": "many"}))
    with pytest.raises(UserError, match="cannot load the model") as error:
        resolve_window(config(model=str(tmp_path / "m")))
    assert error.value.__cause__ is not None


def test_a_name_that_is_no_model_needs_no_traceback() -> None:
    with pytest.raises(UserError, match=r"'\./nowhere' is neither") as error:
        resolve_window(config(model="./nowhere"))
    assert error.value.__cause__ is None


@pytest.mark.parametrize("trusted", [False, True])
def test_the_configuration_says_whether_a_models_python_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    told: list[Any] = []

    def spy(real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            told.append(options.get("trust_remote_code"))
            return real(*args, **options)

        return call

    for kind in (AutoConfig, AutoTokenizer):
        monkeypatch.setattr(kind, "from_pretrained", spy(kind.from_pretrained))
    monkeypatch.setattr(dpi, "get_model_and_tokenizer", spy(dpi.get_model_and_tokenizer))
    cfg = config(model=str(folder), device="cpu", trust_remote_code=True) if trusted else config(model=str(folder))
    read_model_config(cfg.model, trust_remote_code=cfg.trust_remote_code)
    resolve_window(cfg)
    count_prompts(cfg.model_copy(update={"limit": 1, "options": cfg.options.model_copy(update={"lengths": (0.2,)})}))
    EngineLoader(Workers())(cfg)
    assert len(told) >= 6
    assert set(told) == {trusted}


@pytest.mark.parametrize("value", ["true", 1, "yes"])
def test_only_the_word_true_trusts(value: object) -> None:
    assert config().trust_remote_code is False
    with pytest.raises(UserError, match="trust_remote_code"):
        config(trust_remote_code=value)
