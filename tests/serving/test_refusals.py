"""What an engine with GALI refuses when it starts, by name and in one line, before anything is loaded."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import TINY
from tests.serving.engines import GALI

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

Configure = Callable[..., Any]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Configure:
    """configure(settings, **options of EngineArgs): the configuration of an engine on the embedded model."""
    monkeypatch.delenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", raising=False)

    def make(settings: Any, **options: Any) -> Any:
        from vllm.engine.arg_utils import EngineArgs

        told = {} if settings is None else {"additional_config": {"gali": settings}}
        chosen = {"model": str(TINY), "dtype": "float32", "max_model_len": 4096, "enforce_eager": True}
        return EngineArgs(**chosen | told | options).create_engine_config()

    return make


def with_config(folder: Path, **changes: Any) -> str:
    """A model that is the embedded one but for its configuration, without weights."""
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((TINY / name).read_bytes())
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def dpi(**params: Any) -> dict[str, Any]:
    return {"method": "dpi", "params": {"chunk_coe": 1, "local_window": 256} | params}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("dpi", "gali = 'dpi' must be a table"),
        ({"params": {}}, "'method' is missing"),
        (GALI | {"windw": 512}, "unknown key 'windw'; did you mean 'window'"),
        (GALI | {"window": "512"}, "window = '512': must be a whole number"),
        (GALI | {"window": 200}, "local_window = 256 must be smaller than the model's window of 200 tokens"),
        (GALI | {"window": 0}, "must be at least 1"),
        ({"method": "galli"}, "method is 'galli'"),
        ({"method": "dpi", "params": {"chunk": 1}}, "unknown parameter 'chunk'"),
        ({"method": "dpi"}, "is no causal function of a token's prefix.*chunk_coe = 1"),
        (dpi(chunk_coe=3000), "is no causal function"),
        (dpi(chunk_coe=1.0), "is no causal function"),
        (dpi(noise_type="gaussian"), "noise_type = 'no'"),
        ({"method": "repro_dynamic_ntk", "params": {"factor": 8.0}}, "is no causal function"),
        ({"method": "repro_chunkllama"}, "is no causal function"),
        ({"method": "repro_yarn", "params": {"factor": 4.0}}, "reaches 2048 tokens.*less than max_model_len = 4096"),
    ],
)
def test_settings(configure: Configure, settings: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        configure(settings)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(("gali: ", "additional_config: gali"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype = 'fp8"),
        ({"attention_backend": "FLASH_ATTN"}, "backend FLASH_ATTN was asked for"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}},
            "speculative_config",
        ),
        (
            {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
            "keys would leave the engine",
        ),
        ({"kv_offloading_size": 1.0}, "keys would leave the engine"),
        ({"model_impl": "transformers"}, "by transformers' code"),
        ({"hf_overrides": {"max_position_embeddings": 4096}}, "give that as gali's window"),
    ],
)
def test_options(configure: Configure, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        configure(GALI, **options)
    assert "\n" not in str(error.value)


LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}  # fmt: skip
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": LINEAR}, "rope_type = 'linear'"),
        ({"rope_parameters": LLAMA3}, "rope_type = 'llama3'"),
        ({"rope_parameters": PARTIAL}, "partial_rotary_factor = 0.5"),
        (
            {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 128},
            "sliding window.*128",
        ),
        (
            {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": True,
             "sliding_window": 128, "max_window_layers": 2},
            "sliding window.*128",
        ),
        ({"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}, "the model is a Gemma2ForCausalLM"),
        ({"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "kv_lora_rank": 32,
          "q_lora_rank": None, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32},
         "the model is a DeepseekV2ForCausalLM"),
        ({"is_causal": False}, "is_causal = False"),
    ],
)  # fmt: skip
def test_models(configure: Configure, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    model = with_config(tmp_path / "model", **changes)
    with pytest.raises(ValueError, match=said) as error:
        configure(GALI, model=model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["GALI", "galli", "gal"])
def test_a_misspelt_key(configure: Configure, key: str) -> None:
    """Stock engines have keys of other plug-ins; one that is nearly ours would be left out of account."""
    with pytest.raises(ValueError, match=f"unknown key '{key}'; did you mean 'gali'"):
        configure(None, additional_config={key: GALI})
    assert configure(None, additional_config={"ascend": 1, "gdn": 2}, max_model_len=512).additional_config["gdn"] == 2


def test_another_version_of_vllm(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    monkeypatch.setattr(vllm, "__version__", "0.33.1")
    with pytest.raises(ValueError, match=r"vLLM is 0\.33\.1, and this plug-in is written for 0\.32"):
        configure(GALI)
    assert configure(None, max_model_len=512).model_config.max_model_len == 512


def test_a_device_without_attention(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_gali import checks, paged

    monkeypatch.setattr(paged, "IMPLEMENTATIONS", {})
    monkeypatch.setattr(checks, "IMPLEMENTATIONS", {"cuda": paged.gather})
    with pytest.raises(ValueError, match="the device is cpu, and this plug-in has attention for cuda alone"):
        configure(GALI)


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        ({}, {}, "dtype = 'float32'; the kernels for CUDA take bfloat16 and float16"),
        ({"dtype": "bfloat16", "kv_cache_dtype": "float16"}, {}, "kv_cache_dtype = 'float16' and dtype = 'bfloat16'"),
        (
            {"dtype": "bfloat16"},
            {"head_dim": 72},
            "head_dim = 72; the kernels for CUDA take 64, 80, 96, 112, 128, 192, 256",
        ),
        ({"dtype": "float16", "kv_cache_dtype": "fp8"}, {}, "kv_cache_dtype = 'fp8'"),
    ],
)
def test_what_the_kernels_for_cuda_cannot_do(
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: dict[str, Any],
    changes: dict[str, Any],
    said: str,
) -> None:
    configure(GALI)  # imports vllm_gali.checks
    monkeypatch.setattr("vllm_gali.checks.current_platform", SimpleNamespace(device_type="cuda"))
    with pytest.raises(ValueError, match=said) as error:
        configure(GALI, model=with_config(tmp_path / "model", **changes), **options)
    assert "\n" not in str(error.value)
    assert configure(GALI, dtype="bfloat16").model_config.max_model_len == 4096


def test_more_than_the_window_needs_no_environment_variable(configure: Configure) -> None:
    config = configure(GALI, max_model_len=8192)
    assert config.model_config.max_model_len == 8192
    assert config.model_config.hf_text_config.max_position_embeddings == 512
    with pytest.raises(ValueError, match="VLLM_ALLOW_LONG_MAX_MODEL_LEN"):
        configure(None, max_model_len=8192)


def _unchanged(config: Any) -> Any:
    return config


@pytest.mark.parametrize("overrides", [{"attention_dropout": 0.0}, _unchanged])
def test_overrides_of_ones_own_stay(configure: Configure, overrides: Any) -> None:
    from vllm.engine.arg_utils import EngineArgs

    args = EngineArgs(model=str(TINY), max_model_len=4096, hf_overrides=overrides, additional_config={"gali": GALI})
    assert args.create_engine_config().model_config.max_model_len == 4096
    assert args.hf_overrides is overrides


def test_passes_that_rotate_keys_are_off(configure: Configure) -> None:
    passes = dict.fromkeys(("enable_qk_norm_rope_fusion", "fuse_rope_kvcache", "fuse_qk_norm_rope_kvcache"), True)
    config = configure(GALI, compilation_config={"pass_config": passes})
    assert not any(getattr(config.compilation_config.pass_config, name) for name in passes)


def test_registering_twice_changes_nothing() -> None:
    import vllm_gali
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    vllm_gali.register()
    before = EngineArgs.create_engine_config
    vllm_gali.register()
    assert EngineArgs.create_engine_config is before
    from vllm_gali.rotary import MaybeNoRotation

    assert MaybeNoRotation.name == RotaryEmbedding.name, "stock engines choose its kernel by this name"


def test_only_engines_with_gali_need_it() -> None:
    """Without GALI on the path a stock engine starts, and the other says what is missing."""
    code = f"""
from vllm.engine.arg_utils import EngineArgs
print(EngineArgs(model={str(TINY)!r}).create_engine_config().model_config.max_model_len)
try:
    EngineArgs(model={str(TINY)!r}, additional_config={{"gali": {GALI}}}).create_engine_config()
except ModuleNotFoundError as error:
    print(error)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=TINY, env=environment, timeout=280
    )
    assert done.stdout.splitlines()[-2:] == [
        "512",
        "vllm_gali finds no GALI: install it ('pip install .' in its checkout), or put the checkout on PYTHONPATH",
    ], done.stderr[-2000:]
