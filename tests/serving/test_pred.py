"""`pred.py` with vLLM, as a server and as an engine of its own: what is filed is what transformers files."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

import pred
from tasks.errors import UserError
from tests.conftest import ROOT
from tests.serving.engines import GALI
from tests.serving.servers import running

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

Predict = Callable[..., Path]


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predict:
    """predict(results, **keys): the results folder of a run that succeeds.

    An engine of vLLM has a process of its own: the tests' process has others, see `Engine.close`.
    """
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    base = {"model": "tiny", "exp_name": "e", "method": "dpi", "max_pe": 4096, "dtype": "fp32"}

    def run(results: str, **keys: Any) -> Path:
        found = {"params": GALI["params"], **base, **keys}
        tables = {key: value for key, value in found.items() if isinstance(value, dict)}
        lines = [f"{key} = {json.dumps(value)}" for key, value in found.items() if key not in tables]
        for name, table in tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        path = tmp_path / "c.toml"
        path.write_text("\n".join(lines))
        arguments = ["--cfg", str(path), "--results", str(tmp_path / results)]
        if keys.get("engine") == "vllm":
            command, log = [sys.executable, "pred.py", *arguments], tmp_path / "log"
            with log.open("w") as written, running(command, stdout=written, stderr=subprocess.STDOUT) as process:
                code = process.wait(800)
            assert code == 0, log.read_text()[-3000:]
        else:
            assert pred.main(arguments) == 0
        return tmp_path / results

    return run


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def books(tmp_path: Path) -> str:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text(" ".join(topics[name] for name in sorted(topics))[:40_000])
    return str(tmp_path / "books")


def compare(predict: Predict, books: str, batch_sizes: Sequence[int | str], **there: Any) -> None:
    """Needle and PG19 by transformers and by another engine."""
    needle: dict[str, Any] = {"task": "needle", "lengths": [0.3, 1.1, 3.9], "depths": 3, "times": 1}
    needle["max_new_tokens"] = 12
    path = Path("needle/pred/e/needle.jsonl")
    expected = read(predict("local", **needle) / path)
    assert sum(line["answer"] in line["pred"] for line in expected) > 6
    for batch_size in batch_sizes:
        folder = predict(f"by {batch_size}", **needle, **there, batch_size=batch_size)
        assert read(folder / path) == expected
        run = json.loads((folder / path.parent / "run.json").read_text())
        assert run["generation"]["served"]["version"].startswith("vLLM 0.32")
    pg19 = {"task": "pg19", "data_dir": books, "max_pe": 3001, "step": 500}
    (alone,) = read(predict("local", **pg19) / "pg19/pred/e/pg19.jsonl")
    (found,) = read(predict("there", **pg19, **there) / "pg19/pred/e/pg19.jsonl")
    assert found["scored_tokens"] == alone["scored_tokens"] == 3000
    for length, loss in alone["loss_sums"].items():
        assert found["loss_sums"][length] == pytest.approx(loss, rel=1e-5)


def test_a_server_files_what_transformers_files(server: str, predict: Predict, books: str) -> None:
    """Prompts within the window and to eight of it: texts, ends, counts and losses."""
    compare(predict, books, (1, "auto"), engine="openai", base_url=server)


def test_an_engine_of_its_own_files_what_transformers_files(predict: Predict, books: str) -> None:
    options = {"enforce_eager": True, "kv_cache_memory_bytes": 128 << 20, "max_num_batched_tokens": 256}
    compare(predict, books, ("auto",), engine="vllm", vllm=options)


def test_without_the_plug_in_an_engine_is_refused(tmp_path: Path) -> None:
    """vLLM leaves a setting that it does not know out of account, and would be a stock engine."""
    cfg = tmp_path / "c.toml"
    cfg.write_text(
        'model = "tiny"\nexp_name = "e"\nmethod = "dpi"\nmax_pe = 512\ntask = "needle"\nlengths = [0.3]\n'
        'engine = "vllm"\n'
        "[params]\nchunk_coe = 1\nlocal_window = 256\n[vllm]\nenforce_eager = true\nkv_cache_memory_bytes = 67108864\n"
    )
    done = subprocess.run(
        [sys.executable, "pred.py", "--cfg", str(cfg), "--results", str(tmp_path / "r")],
        capture_output=True, text=True, cwd=ROOT, timeout=280,
        env={**os.environ, "VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-2000:]
    assert "does not say that it runs a method of this project, but 'vllm-0.32" in done.stderr
    assert not (tmp_path / "r" / "needle").exists()


def test_the_server_ends_texts_as_one_process_does(server: str) -> None:
    """At an end token of the request, which counts, and never before min_new_tokens."""
    from pipeline.config import build_config
    from pipeline.distributed import Workers
    from pipeline.model_loader import EngineLoader
    from tasks.base import Generation, Request

    base = {
        "model": "tiny", "exp_name": "e", "method": "dpi", "params": GALI["params"], "max_pe": 2048, "task": "needle",
        "dtype": "fp32",
    }  # fmt: skip
    load = EngineLoader(Workers())
    local = load(build_config(base, "test"))
    there = EngineLoader(Workers())(build_config(base | {"engine": "openai", "base_url": server}, "test"))
    prompt = local.tokenizer("The grass is green. " * 90)["input_ids"]
    (whole,) = local.generate([Request(prompt, 12)])
    assert isinstance(whole, Generation)
    row = local.tokenizer(whole.text, add_special_tokens=False)["input_ids"]
    requests = [Request(prompt, 12), Request(prompt, 12, (row[2],)), Request(prompt, 12, (row[2],), 7)]
    found = [local.generate([request])[0] for request in requests]
    assert [there.generate([request])[0] for request in requests] == found
    counts = [one.new_tokens for one in found if isinstance(one, Generation)]
    assert counts[1] < counts[2] <= 12


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"params": {"chunk_coe": 1, "local_window": 128}}, "the server has params"),
        ({"method": "repro_se", "params": {"group_size": 31, "window_size": 256}}, "the server has method = 'dpi'"),
        ({"ori_max_position_embeddings": 256, "params": {"chunk_coe": 1, "local_window": 128}}, "has window = 512"),
        ({"dtype": "bf16"}, "the server has dtype = 'float32'"),
        ({"max_pe": 8192}, "max_model_len = 4200 is below max_pe = 8192"),
    ],
)
def test_a_server_of_something_else_is_refused(server: str, predict: Predict, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        predict("r", task="needle", engine="openai", base_url=server, **keys)
