"""A server with GALI says what it runs; one without says what vLLM says, and is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.DPI import build_method
from models.DPI.served import Served, params_of
from tests.conftest import TINY
from tests.serving.engines import GALI

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


def configure(settings: Any, **options: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    told = {} if settings is None else {"additional_config": {"gali": settings}}
    chosen = {"model": str(TINY), "dtype": "float32", "max_model_len": 512 if settings is None else 4096}
    return EngineArgs(**chosen | told | options).create_engine_config()


def said_by(config: Any) -> str | None:
    from vllm.entrypoints.serve.utils.fingerprint import get_system_fingerprint

    found: str | None = get_system_fingerprint(config)
    return found


def test_what_a_server_with_gali_says() -> None:
    import vllm

    method = build_method(GALI["method"], GALI["params"])
    assert Served.read(said_by(configure(GALI, dtype="bfloat16"))) == Served(
        method="dpi", params=params_of(method), window=512, model=str(TINY), revision=None, dtype="bfloat16",
        quantization=None, logprobs="raw_logprobs", version=f"vLLM {vllm.__version__}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("method", {"method": "repro_yarn", "params": {"factor": 8.0}}),
        ("params", {"method": "dpi", "params": {"chunk_coe": 1, "local_window": 255}}),
        ("window", GALI | {"window": 511}),
    ],
)
def test_other_settings_say_something_else(name: str, settings: dict[str, Any]) -> None:
    found, other = (Served.read(said_by(configure(one))) for one in (GALI, settings))
    assert found is not None
    assert other is not None
    assert getattr(found, name) != getattr(other, name)


def test_a_stock_server_says_what_vllm_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.entrypoints.serve.utils import fingerprint

    said = said_by(configure(None))
    assert said is not None
    assert said.startswith("vllm-0.32")
    assert Served.read(said) is None
    monkeypatch.setattr(fingerprint, "_DEFAULT_MODE", "custom")
    monkeypatch.setattr(fingerprint, "_CUSTOM_VALUE", "mine")
    assert said_by(configure(None)) == "mine"
    assert Served.read(said_by(configure(GALI))) is not None, "whatever was asked for"


def test_a_link_to_a_folder_is_the_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(TINY)
    found = Served.read(said_by(configure(GALI, model=str(tmp_path / "link"))))
    assert found is not None
    assert found.model == str(TINY)


def test_a_configuration_that_the_plug_in_has_not_made_is_not_described() -> None:
    from vllm_gali.saying import served_of

    config = configure(GALI)
    assert json.loads(served_of(config).text().removeprefix("gali "))["method"] == "dpi"
    del config.model_config.hf_text_config.rope_parameters["gali"]
    with pytest.raises(ValueError, match="not made by this plug-in"):
        served_of(config)
