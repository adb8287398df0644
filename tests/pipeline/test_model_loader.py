import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from models.DPI import dpi
from models.DPI.loading import check_attention, default_dtype
from models.DPI.methods import build_method
from pipeline import model_loader
from pipeline.checks import Start, check_start
from pipeline.config import ExperimentConfig
from pipeline.distributed import Workers
from pipeline.dry_run import count_prompts
from pipeline.experiment import read_records
from pipeline.model_files import one_line, read_model_config
from pipeline.model_loader import EngineLoader
from tasks import get_task
from tasks.errors import UserError
from tests.pipeline.small import config, save_model

TINY = {"model": "tiny", "method": "repro_original"}


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({"device": "cpu"}, torch.float32),
        ({"device": "cpu", "dtype": "fp16"}, torch.float16),
        ({"device_map": "cpu", "dtype": "bf16"}, torch.bfloat16),
        ({}, default_dtype(None)),
    ],
)
def test_the_dtype_is_the_loaders(keys: dict[str, str], dtype: torch.dtype) -> None:
    assert check_start(config(**TINY, **keys)).dtype == dtype


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "device": ({"device": "gpu"}, "device is 'gpu'; it must be cpu"),
    "absent device": ({"device": "cuda:99"}, "device is 'cuda:99', but this machine has"),
    "placed twice": ({"device": "cpu", "device_map": "auto"}, "device = 'cpu' goes with neither device_map"),
    "device map": ({"device_map": "atuo"}, "device_map is 'atuo'; it must be one of auto"),
    "absent place": ({"device_map": {"lm_head": 99}}, "device_map of 'lm_head': device is 'cuda:99'"),
    "tp_plan": ({"tp_plan": "colwise"}, "tp_plan is 'colwise'; it must be 'auto'"),
    "implementation": ({"attn_impl": "fast"}, "attn_impl is 'fast'; it must be one of auto"),
    "unable": ({"attn_impl": "flash", "device": "cpu"}, "attn_impl = 'flash' cannot run here: it needs a CUDA device"),
    "parameter": ({"params": {"x": 1}}, "unknown parameter 'x'"),
    "below W": ({"method": "dpi", "max_pe": 511}, "max_pe = 511 is below the window of 512 tokens"),
    "no room": ({"method": "dpi", "params": {"local_window": 512}}, "local_window = 512 must be smaller than"),
    "reach": ({"method": "repro_ntk", "params": {"factor": 2}}, "reaches 1024 tokens from a window of 512"),
    "model": ({"model": "./nowhere"}, "'./nowhere' is neither a folder"),
}


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_what_the_user_can_mend_is_said_as_it_is(case: str) -> None:
    """By the check before a run and by the loader, without a traceback, and not as a fault of the model's files."""
    keys, said = WRONG[case]
    for start in (check_start, EngineLoader(Workers())):
        with pytest.raises(UserError) as error:
            start(config(**{**TINY, **keys}))
        assert said in str(error.value)
        assert "cannot load" not in str(error.value)
        assert error.value.__cause__ is None


def test_what_is_checked_before_a_load_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[ExperimentConfig] = []

    def watched(cfg: ExperimentConfig, *args: Any, **options: Any) -> Start:
        checked.append(cfg)
        return check_start(cfg, *args, **options)

    monkeypatch.setattr(model_loader, "check_start", watched)
    load_engine = EngineLoader(Workers())
    assert load_engine.check(config(**TINY)).window == 512
    load_engine(config(**TINY, limit=1))
    assert len(checked) == 1
    load_engine(config(**TINY, seed=1))
    assert len(checked) == 2, "another model was not checked"


def test_within_the_window_only_a_method_that_extends_is_refused() -> None:
    assert check_start(config(**TINY, max_pe=100)).window == 512
    assert check_start(config(**{**TINY, "method": "dpi"}, max_pe=512)).window == 512


def test_an_implementation_is_asked_about_the_model(folder: Path) -> None:
    """Noise, which FlashAttention cannot add, is the method's; the size of a head is the model's."""
    model = AutoConfig.from_pretrained(folder)
    for params, said in (({"noise_type": "gaussian"}, "adds no noise|CUDA"), ({}, "CUDA")):
        method = build_method("dpi", {"chunk_coe": 1, "local_window": 8, **params})
        with pytest.raises(ValueError, match=said):
            check_attention(model, method, 64, "flash", torch.device("cpu"), torch.bfloat16)
    for name in ("sdpa", "reference", "auto"):
        check_attention(model, build_method("repro_ntk", {"factor": 2}), 64, name, torch.device("cpu"), torch.float32)


def test_an_engine_serves_the_next_experiment_with_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[ExperimentConfig] = []
    shares: list[object] = []

    class Loaded:
        def share_prefixes(self, wanted: object) -> None:
            shares.append(wanted)

    def load(self: EngineLoader, cfg: ExperimentConfig) -> Loaded:
        loaded.append(cfg)
        return Loaded()

    monkeypatch.setattr(EngineLoader, "_load", load)
    load_engine = EngineLoader(Workers())
    first = load_engine(config(times=1))
    assert load_engine(config(times=2, limit=3, exp_name="other")) is first
    assert load_engine(config(task="pg19", share_prefixes=False)) is first
    assert load_engine(config(batch_size=4)) is first
    assert shares == ["auto", "auto", False, False], "what an engine does follows the experiment"
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
        check_start(config(model=str(tmp_path / "m")))
    assert error.value.__cause__ is not None


def test_a_name_that_is_no_model_needs_no_traceback() -> None:
    with pytest.raises(UserError, match=r"'\./nowhere' is neither") as error:
        check_start(config(model="./nowhere"))
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
    check_start(cfg)
    few = cfg.model_copy(update={"limit": 1, "options": cfg.options.model_copy(update={"lengths": (0.2,)})})
    count_prompts(few, read_records(get_task("needle"), few))
    EngineLoader(Workers())(cfg)
    assert len(told) >= 6
    assert set(told) == {trusted}


@pytest.mark.parametrize("value", ["true", 1, "yes"])
def test_only_the_word_true_trusts(value: object) -> None:
    assert config().trust_remote_code is False
    with pytest.raises(UserError, match="trust_remote_code"):
        config(trust_remote_code=value)


def test_the_last_engine_is_let_go_at_the_end_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []

    class Loaded:
        def __init__(self, number: int) -> None:
            self.number = number

        def close(self) -> None:
            closed.append(self.number)

    numbers = iter((1, 2, 3))
    monkeypatch.setattr(model_loader, "served_engine", lambda cfg: Loaded(next(numbers)))
    served = {"engine": "openai", "base_url": "http://127.0.0.1:1/v1"}
    with EngineLoader(Workers()) as load_engine:
        load_engine(config(**served))
        load_engine(config(**served, seed=1))
        assert closed == [1]
    assert closed == [1, 2]
    load_engine = EngineLoader(Workers())
    load_engine(config(**served))
    with pytest.raises(ZeroDivisionError), load_engine:
        raise ZeroDivisionError
    assert closed == [1, 2, 3]


def test_a_gated_model_says_what_to_do_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.hub.silence", lambda: None)

    def load() -> None:  # transformers' words
        raise OSError(
            "You are trying to access a gated repo.\nMake sure to have access to it at https://huggingface.co/a/b.\n401"
        )

    with pytest.raises(UserError) as caught:
        one_line("a/b", load)
    said = str(caught.value)
    assert "\n" not in said
    assert "accept the terms at https://huggingface.co/a/b, and log in with `hf auth login` or set HF_TOKEN" in said
