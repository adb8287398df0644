"""Where tests find the shared material, and models small enough to build in a moment."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    # Kernels run in Triton's interpreter. Triton reads this when it is first imported, which transformers does.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
TINY = ROOT / "models" / "tiny"

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """GPU tests are skipped, and say so, where there is no GPU; long ones run where they are asked for by name."""
    if "fuzz" not in config.option.markexpr:
        items[:] = [item for item in items if "fuzz" not in item.keywords]
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The recorded outputs of the authors' code."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("../shared/golden is not there")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The unpacked public data."""
    script = SHARED / "data" / "unpack"
    if not script.is_file():
        pytest.skip("../shared/data is not there")
    done = subprocess.run(["bash", str(script)], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    """Random models: make_model(window=32, model_type="llama", dtype=torch.float32, **config)."""

    def make(
        window: int = 32, model_type: str = "llama", dtype: torch.dtype = torch.float32, **config: object
    ) -> PreTrainedModel:
        options = {
            "vocab_size": 101,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "max_position_embeddings": window,
            "initializer_range": 0.3,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
            "sliding_window": None,
            **config,
        }
        torch.manual_seed(20)
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options), dtype=dtype)
        return made.eval()

    return make
