"""What is expected of a program that runs the model, and what is said where it is another."""

import pytest

from models.DPI import build_method
from pipeline.config import build_config
from pipeline.model_loader import check_start
from pipeline.served import Expected
from tasks.errors import UserError
from tests.conftest import TINY

PARAMS = {"chunk_coe": 1, "local_window": 256}


@pytest.mark.parametrize(
    ("keys", "remedy"),
    [
        ({"engine": "openai", "base_url": "http://127.0.0.1:1/v1"}, f"--model {TINY} and --additional-config"),
        ({"engine": "vllm"}, "install the plug-in of serving/ where this runs.*VLLM_PLUGINS"),
    ],
)
@pytest.mark.parametrize("said", ["vllm-0.32.0-1a2b3c4d", None])
def test_a_stock_engine_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, keys: dict[str, str], remedy: str, said: str | None
) -> None:
    """A server is somebody else's to start; an engine of this process needs the plug-in here."""
    monkeypatch.setattr("pipeline.vllm_engine.check_installed", lambda: None)
    base = {"model": "tiny", "exp_name": "e", "method": "dpi", "params": PARAMS, "max_pe": 2048, "task": "needle"}
    cfg = build_config(base | keys, "test")
    expected = Expected(cfg, check_start(cfg), build_method("dpi", PARAMS), str(TINY))
    with pytest.raises(UserError, match=f"does not say that it runs a method of this project, but.*{remedy}") as error:
        expected.check(said)
    assert "\n" not in str(error.value)
