"""`engine = "openai"`: what a server says is filed as what one process says, or not at all."""

import importlib.util
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pred
from models.DPI import build_method, get_model_and_tokenizer
from models.DPI.served import Served, params_of
from pipeline import client
from pipeline.cli import EXIT_FAILED_RECORDS
from pipeline.config import build_config
from pipeline.distributed import Workers
from pipeline.model_loader import EngineLoader, served_engine
from pipeline.served import GREEDY
from tasks.base import Generation, Request
from tasks.errors import UserError
from tests.pipeline.fake_server import FakeServer, status
from tests.pipeline.fake_task import FakeWorkers
from tests.pipeline.small import save_model

PARAMS = {"chunk_coe": 1, "local_window": 16}
PROMPT = [5, 30, 17, 12, 44]
END = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a window of 64."""
    return save_model(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return get_model_and_tokenizer(str(folder), None, "dpi", PARAMS, dtype="float32", device="cpu")[0]


def served(folder: Path, **changes: Any) -> str:
    """What a server of that model says."""
    method = build_method("dpi", changes.pop("params", PARAMS))
    found = {
        "method": "dpi", "params": params_of(method), "window": 64, "model": str(folder.resolve()), "revision": None,
        "dtype": "float32", "quantization": None,
        "logprobs": "raw_logprobs", "version": "vLLM 0.32.0",
    }  # fmt: skip
    return Served(**(found | changes)).text()


@pytest.fixture
def server(folder: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(client, "PAUSES", (0.0, 0.0))
    for name in (client.KEY, "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with FakeServer(model, served(folder)) as found:
        yield found


Keys = Callable[..., dict[str, Any]]


@pytest.fixture
def keys(folder: Path) -> Keys:
    """keys(**changes): a configuration of four short prompts, the model's window exceeded."""
    base = {
        "model": str(folder), "exp_name": "e", "method": "dpi", "params": PARAMS, "task": "needle", "max_pe": 256,
        "lengths": [0.15, 0.2], "depths": 2, "times": 1, "max_new_tokens": 7, "dtype": "fp32",
    }  # fmt: skip
    return lambda **changes: base | changes


Predict = Callable[..., int]


@pytest.fixture
def predict(tmp_path: Path, server: FakeServer, keys: Keys) -> Predict:
    """predict(results, **keys): the exit code of pred.py with the server."""

    def run(results: str, *arguments: str, **changes: Any) -> int:
        path = tmp_path / "c.toml"
        found = (
            keys(engine="openai", base_url=server.url, **changes) if changes.get("engine") is None else keys(**changes)
        )
        lines = [f"{key} = {json.dumps(value)}" for key, value in found.items() if key != "params"]
        table = [f"{key} = {json.dumps(value)}" for key, value in found["params"].items()]
        path.write_text("\n".join([*lines, "[params]", *table]))
        return pred.main(["--cfg", str(path), "--results", str(tmp_path / results), *arguments])

    return run


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "needle/pred/e/needle.jsonl").read_text().splitlines()]


def test_results_are_those_of_one_process(server: FakeServer, predict: Predict, tmp_path: Path) -> None:
    assert predict("local", engine="transformers") == 0
    assert server.asked == []
    for results, batch_size, requests in (("one", 1, 4), ("some", 3, 2), ("all", "auto", 1)):
        server.asked.clear()
        assert predict(results, batch_size=batch_size) == 0
        assert lines_of(tmp_path / results) == lines_of(tmp_path / "local")
        assert len(server.asked) == 2 + requests, "the list of models, one answer to know the server, the batches"
    run = json.loads((tmp_path / "all/needle/pred/e/run.json").read_text())
    assert run["device"] == server.url
    assert run["generation"]["served"] == Served.read(server.says).model_dump()  # type: ignore[union-attr]
    body = server.asked[-1][1]
    assert body["temperature"] == 0
    assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"], body["logprobs"]) == (7, 0, True, 0)
    assert GREEDY.items() <= body.items()


def test_a_failed_record_is_tried_again_by_the_same_command(
    server: FakeServer, predict: Predict, tmp_path: Path
) -> None:
    server.faults.extend([None, None, None, status(400, "not this one")])
    assert predict("r") == EXIT_FAILED_RECORDS
    errors = [line.get("error") for line in lines_of(tmp_path / "r")]
    assert errors == [None, "ServerError: HTTP 400: not this one", None, None]
    server.asked.clear()
    assert predict("r") == 0
    assert len(server.asked) == 3
    assert predict("whole") == 0
    assert lines_of(tmp_path / "r") == lines_of(tmp_path / "whole"), "in order"


def test_a_batch_that_fails_is_tried_record_by_record(server: FakeServer, predict: Predict, tmp_path: Path) -> None:
    server.faults.extend([None, None, status(400, "one of them"), None, status(400, "this one")])
    assert predict("r", batch_size=4) == EXIT_FAILED_RECORDS
    assert sum("error" in line for line in lines_of(tmp_path / "r")) == 1


def test_a_server_that_goes_away_ends_the_run_which_goes_on_later(
    server: FakeServer, predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = server.answer
    left = [4]

    def answer(path: str, body: Any) -> dict[str, Any]:
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionAbortedError  # the connection is closed without an answer
        return real(path, body)

    monkeypatch.setattr(server, "answer", answer)
    monkeypatch.setattr("socketserver.BaseServer.handle_error", lambda *_: None)
    with pytest.raises(UserError, match=r"does not answer after 3 tries .* the same command goes on from here"):
        predict("r")
    assert len(lines_of(tmp_path / "r")) == 2
    monkeypatch.setattr(server, "answer", real)
    assert predict("r") == 0
    assert predict("whole") == 0
    assert lines_of(tmp_path / "r") == lines_of(tmp_path / "whole")


# What another server says, as its whole text or as what is different, and what is said of it.
OTHERS: dict[str, tuple[Any, str]] = {
    "stock": (
        "vllm-0.32.0-1a2b3c4d",
        "does not say that it runs a method.*'vllm-0.32.0-1a2b3c4d'.*--additional-config",
    ),
    "silent": (None, "does not say that it runs a method"),
    "broken": ("gali {", "does not say that it runs a method"),
    "method": ({"method": "repro_se"}, "the server has method = 'repro_se', and the configuration 'dpi'"),
    "params": ({"params": PARAMS | {"local_window": 8}}, "the server has params = .*'local_window': 8"),
    "window": ({"window": 63}, "the server has window = 63, and the configuration 64"),
    "model": ({"model": "/other"}, "the server has model = '/other'.*served_model tells"),
    "dtype": ({"dtype": "bfloat16"}, "the server has dtype = 'bfloat16', and the configuration 'float32'"),
    "logits": ({"logprobs": "raw_logits"}, "the server has logprobs = 'raw_logits', and the configuration 'raw_"),
    "quantised": ({"quantization": "fp8"}, r"the server has quantised the model \(fp8\)"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_server_is_refused(
    server: FakeServer, folder: Path, predict: Predict, tmp_path: Path, case: str
) -> None:
    says, said = OTHERS[case]
    server.says = served(folder, **says) if isinstance(says, dict) else says
    for arguments in ([], ["--dry-run"]):
        with pytest.raises(UserError, match=said) as error:
            predict("r", *arguments)
        assert "\n" not in str(error.value)
        assert server.url in str(error.value)
    assert not (tmp_path / "r").exists(), "nothing is filed"


def test_a_server_that_becomes_another_ends_the_run(
    server: FakeServer, predict: Predict, tmp_path: Path, folder: Path
) -> None:
    real = served(folder)
    for other, said in (
        (served(folder, dtype="bfloat16"), "another one than at the start"),
        ("vllm-0.32.0", "does not say"),
    ):
        server.says = real
        count = [0]

        def tamper(answer: dict[str, Any], other: str = other, count: list[int] = count) -> dict[str, Any]:
            count[0] += 1
            return answer | {"system_fingerprint": real if count[0] <= 3 else other}

        server.tamper = tamper
        with pytest.raises(UserError, match=said):
            predict("r", "--overwrite")
        assert len(lines_of(tmp_path / "r")) == 2


def test_a_run_goes_on_with_the_server_that_it_began_with(
    server: FakeServer, predict: Predict, tmp_path: Path, folder: Path
) -> None:
    """Without a dtype any is right, but not two in one experiment; nor are two engines."""
    server.faults.extend([None, None, None, status(400)])
    assert predict("r", dtype="fp32") == EXIT_FAILED_RECORDS
    server.says = served(folder, version="vLLM 0.33.0")
    before = {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=r"decoded with other settings: generation\.served\.version was 'vLLM 0\.32\.0'"
    ):
        predict("r", dtype="fp32")
    assert {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="engine was 'openai', is 'transformers'"):
        predict("r", engine="transformers")


def test_a_model_that_the_server_calls_otherwise(server: FakeServer, predict: Predict, folder: Path) -> None:
    server.says = served(folder, model="/elsewhere/tiny")
    assert predict("r", served_model="/elsewhere/tiny", limit=1) == 0
    server.says = served(folder, model="/another/tiny")
    asked = len(server.asked)
    with pytest.raises(UserError, match="served_model was '/elsewhere/tiny', is '/another/tiny'"):
        predict("r", served_model="/another/tiny", limit=2)
    assert len(server.asked) == asked, "what the configuration says is enough to refuse it"


def test_a_dry_run_asks_the_server_and_writes_nothing(
    server: FakeServer, predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict("r", "--dry-run") == 0
    assert f"the server at {server.url} runs this" in capsys.readouterr().out
    assert not (tmp_path / "r").exists()


def test_a_server_for_shorter_prompts_is_refused(server: FakeServer, predict: Predict) -> None:
    server.max_model_len = 255
    with pytest.raises(
        UserError, match=r"max_model_len = 255 is below max_pe = 256; start it with --max-model-len 256"
    ):
        predict("r")


Tamper = Callable[[dict[str, Any]], None]


def cut(answer: dict[str, Any]) -> None:
    answer["choices"][0]["prompt_token_ids"].pop(0)


def stop_early(answer: dict[str, Any]) -> None:
    answer["choices"][0]["token_ids"] = [30, 30]


def go_on(answer: dict[str, Any]) -> None:
    answer["choices"][0]["token_ids"] = [30] * 99


def end_twice(answer: dict[str, Any]) -> None:
    answer["choices"][0]["token_ids"] = [END, END]


def lose_one(answer: dict[str, Any]) -> None:
    answer["choices"].pop()


def lose_ids(answer: dict[str, Any]) -> None:
    del answer["choices"][0]["token_ids"]


def lose_logprobs(answer: dict[str, Any]) -> None:
    answer["choices"][0]["logprobs"]["token_logprobs"].pop()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut, "a prompt of 5 tokens arrived as another one, of 4"),
        (stop_early, "a continuation of 2 tokens is neither 7 long"),
        (go_on, "a continuation of 99 tokens is neither 7 long"),
        (end_twice, "nor does it stop at its first end"),
        (lose_one, "1 prompts got 0 continuations"),
        (lose_ids, r"not as vLLM's are: choices\.0\.token_ids"),
        (lose_logprobs, "new tokens came with"),
    ],
)
def test_what_is_no_continuation_of_the_prompt_is_an_error(
    server: FakeServer, change: Tamper, said: str, keys: Keys
) -> None:
    engine = served_engine(build_config(keys(engine="openai", base_url=server.url), "test"))

    def tamper(answer: dict[str, Any]) -> dict[str, Any]:
        change(answer)
        return answer

    server.tamper = tamper
    with pytest.raises(client.ServerError, match=said):
        engine.generate([Request(PROMPT, 7)])


@pytest.mark.parametrize("value", [None, float("nan")])
def test_logits_that_are_not_finite_are_the_records_error(server: FakeServer, value: float | None, keys: Keys) -> None:
    engine = served_engine(build_config(keys(engine="openai", base_url=server.url), "test"))

    def tamper(answer: dict[str, Any]) -> dict[str, Any]:
        for choice in answer["choices"]:
            if choice["index"] == 1:
                choice["logprobs"]["token_logprobs"][2] = value
        return answer

    server.tamper = tamper
    first, second = engine.generate([Request(PROMPT, 7), Request(PROMPT, 7)])
    assert isinstance(first, Generation)
    assert isinstance(second, FloatingPointError)
    assert "new token 2" in str(second)


def test_what_ends_a_text_is_as_in_one_process(server: FakeServer, keys: Keys) -> None:
    """The model's own end tokens, those of the request, and none before min_new_tokens."""
    cfg = build_config(keys(), "test")
    local = EngineLoader(Workers())(cfg)
    engine = served_engine(build_config(keys(engine="openai", base_url=server.url), "test"))
    plain = server.model.generate(
        torch.tensor([PROMPT]), attention_mask=torch.ones(1, 5, dtype=torch.int64), max_new_tokens=9, do_sample=False,
        eos_token_id=None,
    )[0, 5:].tolist()  # fmt: skip
    for request in (
        Request(PROMPT, 9),
        Request(PROMPT, 9, (plain[3],)),
        Request(PROMPT, 9, (plain[3],), min_new_tokens=plain.index(plain[3]) + 2),
    ):
        assert engine.generate([request]) == local.generate([request])
    assert END in server.asked[-1][1]["stop_token_ids"]


def test_losses_are_those_of_one_process(server: FakeServer, keys: Keys) -> None:
    ids = torch.randint(3, 40, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    local = EngineLoader(Workers())(build_config(keys(), "test"))
    engine = served_engine(build_config(keys(engine="openai", base_url=server.url), "test"))
    torch.testing.assert_close(engine.token_losses(ids, 90), local.token_losses(ids, 90), rtol=0, atol=1e-4)

    def tamper(answer: dict[str, Any]) -> dict[str, Any]:
        (entry,) = answer["choices"][0]["prompt_logprobs"][9].values()
        entry["logprob"] = -9999.0
        return answer

    server.tamper = tamper
    with pytest.raises(FloatingPointError, match=r"the token at position 9 is -inf \(1 of 199 are not finite\)"):
        engine.token_losses(ids, 90)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request([], 7), "no tokens"),
        (Request([5, 99_999], 7), "token id 99999"),
        (Request([-1, 5], 7), "token id -1"),
        (Request([5] * 2042, 7), r"a prompt of 2042 tokens with 7 new ones is more than .* max_model_len = 2048"),
    ],
)
def test_prompts_that_are_none_are_not_sent(server: FakeServer, request_: Request, said: str, keys: Keys) -> None:
    engine = served_engine(build_config(keys(engine="openai", base_url=server.url), "test"))
    server.asked.clear()
    with pytest.raises(ValueError, match=said):
        engine.generate([request_])
    assert server.asked == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": "openai"}, "engine = 'openai' needs base_url"),
        ({"engine": "opanai"}, "engine = 'opanai'.*'openai'"),
        ({"base_url": "http://a/v1"}, "base_url = 'http://a/v1' is for engine = 'openai'"),
        ({"served_model": "a"}, "served_model = 'a' is for engine = 'openai'"),
        ({"vllm": {"block_size": 16}}, "is for engine = 'vllm'"),
        ({"engine": "vllm", "base_url": "http://a"}, "base_url = 'http://a/v1' is for engine = 'openai'"),
        ({"engine": "vllm", "vllm": {"hf_overrides": {}}}, "vllm.*hf_overrides"),
        ({"engine": "vllm", "device": "cpu"}, "device = 'cpu' is not decided here with engine = 'vllm'"),
        ({"engine": "openai", "base_url": "ftp://a"}, "must begin with http"),
        ({"engine": "openai", "base_url": 3}, "base_url = 3: must be a text"),
        *(
            ({"engine": "openai", "base_url": "http://a", key: value}, f"{key} = .* is not decided here")
            for key, value in (
                ("device", "cpu"), ("device_map", "auto"), ("tp_plan", "auto"), ("attn_impl", "sdpa"),
                ("share_prefixes", True),
            )
        ),
        (
            {"engine": "openai", "base_url": "http://a", "ori_max_position_embeddings": "auto"},
            "'auto' is for engine = 'transformers'",
        ),
    ],
)  # fmt: skip
def test_keys_that_do_not_go_together(changes: dict[str, Any], said: str, keys: Keys) -> None:
    with pytest.raises(UserError, match=said) as error:
        build_config(keys(**changes), "test")
    assert "\n" not in str(error.value)


def test_a_password_is_not_repeated(keys: Keys) -> None:
    with pytest.raises(UserError, match="name or a password") as error:
        build_config(keys(engine="openai", base_url="http://me:secret@a/v1"), "test")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("params", [{"local_window": 16}, PARAMS | {"noise_type": "gaussian"}])
def test_methods_that_no_server_runs(server: FakeServer, params: dict[str, Any], predict: Predict) -> None:
    with pytest.raises(UserError, match=r"engine = 'openai' runs methods that are causal.*chunk_coe = 1"):
        predict("r", params=params)
    assert server.asked == []


def test_the_key_is_in_no_file(
    server: FakeServer,
    predict: Predict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(client.KEY, "sk-hidden")
    server.faults.extend([None, None, status(400, "no")])
    with caplog.at_level(logging.DEBUG):
        assert predict("r", limit=2) == EXIT_FAILED_RECORDS
    assert server.asked[0][2]["Authorization"] == "Bearer sk-hidden"
    assert "sk-hidden" not in caplog.text
    for path in (path for path in (tmp_path / "r").rglob("*") if path.is_file()):
        assert b"sk-hidden" not in path.read_bytes()


def test_an_engine_of_vllm_is_not_begun_by_a_dry_run(
    predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.vllm_engine.check_installed", lambda: None)
    assert predict("r", "--dry-run", engine="vllm") == 0
    assert "memory and time are vLLM's" in capsys.readouterr().out
    assert not (tmp_path / "r").exists()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is here")
@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_an_engine_of_vllm_needs_vllm(predict: Predict, arguments: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"engine = 'vllm': vllm.* cannot be imported here; docs/serving\.md"):
        predict("r", *arguments, engine="vllm")


def test_an_engine_of_vllm_is_for_one_process(keys: Keys) -> None:
    with pytest.raises(UserError, match="engine = 'vllm' starts its own processes"):
        EngineLoader(FakeWorkers(1, 2))(build_config(keys(engine="vllm"), "test"))
