import pytest

from models.DPI.methods import build_method
from models.DPI.served import Served, params_of

SERVED = Served(
    method="dpi",
    params=params_of(build_method("dpi", {"chunk_coe": 1})),
    window=512,
    model="/ä/model",
    revision=None,
    dtype="bfloat16",
    quantization=None,
    logprobs="raw_logprobs",
    version="vLLM 0.32.0",
)


def test_it_is_read_as_it_was_written() -> None:
    assert Served.read(SERVED.text()) == SERVED
    assert SERVED.text().isascii()


def test_defaults_are_said() -> None:
    assert params_of(build_method("dpi", {"chunk_coe": 1})) == params_of(
        build_method("dpi", {"chunk_coe": 1, "local_window": 128, "noise_type": "no"})
    )
    assert params_of(build_method("dpi", {"chunk_coe": 1})) != params_of(build_method("dpi", {"chunk_coe": 2}))


@pytest.mark.parametrize(
    "text",
    [None, 3, "", "vllm-0.32.0-1a2b3c4d", "gali", "gali ", "gali 3", "gali {}", SERVED.text()[:-1],
     SERVED.text().replace("512", '"512"'), SERVED.text().replace("{", '{"more": 1, ', 1)],
)  # fmt: skip
def test_what_is_no_such_text(text: object) -> None:
    assert Served.read(text) is None
