"""EleutherAI's harness: its numbers are the engine's, and what it would cut is refused. Skipped where it is absent."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed; make test-harness runs these")

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from pipeline.engine import ModelEngine
from tasks.base import Request
from tasks.errors import UserError
from tests.conftest import ROOT
from tools.harness import GaliLM, parse_params

METHODS: dict[str, dict[str, Any]] = {
    "dpi": {"chunk_coe": 1, "local_window": 128},
    "repro_se": {"group_size": 6, "window_size": 128},
    "repro_dynamic_ntk": {"factor": 4.0},
    "repro_chunkllama": {},
}
GROUPS = ("The lake was calm that day. ", "We saw no birds at all. ", "It rained in the evening. ")


def text(sentences: int, seed: int) -> str:
    """Some 8 tokens a sentence."""
    return "".join(random.Random(seed).choices(GROUPS, k=sentences))


@pytest.fixture(params=METHODS)
def lm(request: pytest.FixtureRequest) -> GaliLM:
    return made(request.param)


def made(method: str = "dpi", batch_size: int = 3, max_length: int = 1024, **keys: Any) -> GaliLM:
    return GaliLM("tiny", method, METHODS[method], max_length=max_length, batch_size=batch_size, device="cpu", **keys)


def asked(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, given, 0) for given in arguments]


def test_log_likelihoods_are_the_engines(lm: GaliLM) -> None:
    """Rows of several lengths, in and beyond the window of 512, which the harness pads on the right without a mask."""
    pairs = [(text(count, count).strip(), " The lake was calm") for count in (90, 70, 40, 90)]
    found = lm.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    engine = ModelEngine(lm.model, lm.tokenizer)
    for (context, continuation), (log_likelihood, _) in zip(pairs, found, strict=True):
        before, after = lm._encode_pair(context, continuation)
        # The harness does not feed the last token, which other methods would notice.
        with torch.no_grad():
            logits = lm.model(torch.tensor([(before + after)[:-1]])).logits[0].log_softmax(-1)
        expected = logits[len(before) - 1 :].gather(1, torch.tensor(after)[:, None]).sum()
        assert log_likelihood == pytest.approx(float(expected), abs=1e-3)
        if lm._method.is_causal():
            losses = engine.token_losses(before + after, 100)
            assert log_likelihood == pytest.approx(-float(losses[len(before) - 1 :].sum()), abs=1e-3)


def test_rolling_log_likelihoods_are_the_engines() -> None:
    lm = made()
    (found,) = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (text(80, 1),)), disable_tqdm=True)
    ids = [lm.prefix_token_id, *lm.tok_encode(text(80, 1))]
    assert found == pytest.approx(-float(ModelEngine(lm.model, lm.tokenizer).token_losses(ids, 100).sum()), abs=1e-2)


def test_generations_are_the_engines(lm: GaliLM) -> None:
    contexts = [text(count, count) + "The lake" for count in (90, 70, 40)]
    options = {"until": [], "max_gen_toks": 7, "do_sample": False}
    found = lm.generate_until(asked("generate_until", *((context, options) for context in contexts)), disable_tqdm=True)
    engine = ModelEngine(lm.model, lm.tokenizer)
    for context, said in zip(contexts, found, strict=True):
        (expected,) = engine.generate([Request(lm.tok_encode(context), 7)])
        assert said == expected.text


def test_what_would_be_cut_is_refused() -> None:
    lm = made(max_length=600)
    long = text(120, 0)
    with pytest.raises(UserError, match=r"a context with its continuation have \d+ tokens, more than max_length = 600"):
        lm.loglikelihood(asked("loglikelihood", (long, " yes")), disable_tqdm=True)
    tokens = len(lm.tok_encode(text(60, 0)))
    fits = {"until": [], "max_gen_toks": 600 - tokens, "do_sample": False, "min_new_tokens": 0}
    lm._model_generate = lambda context, **keys: context  # type: ignore[method-assign]
    lm.generate_until(asked("generate_until", (text(60, 0), fits)), disable_tqdm=True)
    over = {**fits, "max_gen_toks": 601 - tokens}
    with pytest.raises(UserError, match=r"a prompt and max_gen_toks = \d+ have 601 tokens, more than max_length = 600"):
        lm.generate_until(asked("generate_until", (text(60, 0), over)), disable_tqdm=True)
    with pytest.raises(UserError, match="max_gen_toks = 600 leaves no room"):
        lm.generate_until(asked("generate_until", ("a", {"until": [], "max_new_tokens": 600})), disable_tqdm=True)
    with pytest.raises(UserError, match="max_length would count the prompt too"):
        lm.generate_until(asked("generate_until", ("a", {"until": [], "max_length": 20})), disable_tqdm=True)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"params": {"chunk_coe": 1, "local_windw": 9}}, "local_windw"),
        ({"max_lenght": 9}, "unknown key 'max_lenght'; did you mean 'max_length'"),
        ({"max_length": None}, "max_length is missing"),
        ({"truncation": True}, "unknown key 'truncation'"),
        ({"method": "repro_yarn", "params": "factor:1.5"}, "max_pe|target|reach"),
        ({"method": None}, "give pretrained and method"),
        ({"pretrained": "tony"}, "'tony' is neither a folder"),
        ({"params": "factor"}, "'factor' is not of the form name:value"),
    ],
)
def test_wrong_arguments_are_named(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        GaliLM(**{"pretrained": "tiny", "method": "dpi", "max_length": 1024, **keys})


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="runs in one process"):
        made()


def test_parameters_come_in_three_forms(tmp_path: Path) -> None:
    given = {"chunk_coe": 1, "std_base": 0.5, "appro_attn": True, "noise_type": "no"}
    assert parse_params(given) == given
    assert parse_params("chunk_coe:1; std_base:0.5;appro_attn:true;noise_type:no;") == given
    path = tmp_path / "e.toml"
    path.write_text('model = "tiny"\n[params]\nchunk_coe = 1\nstd_base = 0.5\nappro_attn = true\nnoise_type = "no"\n')
    assert parse_params(str(path)) == given
    assert parse_params(None) == {}


def test_logits_that_are_not_finite_end_the_run() -> None:
    lm = made()
    with torch.no_grad():
        lm.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        lm.loglikelihood(asked("loglikelihood", ("a b", " c")), disable_tqdm=True)
    with pytest.raises(FloatingPointError, match="not finite"):
        lm.generate_until(asked("generate_until", ("a b", {"until": [], "max_gen_toks": 2})), disable_tqdm=True)


TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
output_type: {kind}
test_split: test
doc_to_text: "{{{{context}}}}"
{rest}
"""


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of four records each: a choice by likelihood, and a pass key to be generated."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "context": f"{text(30, seed)}The pass key is {seed}{seed}4. Remember it. {text(45 + 9 * seed, seed)}"
            "What is the pass key? The pass key is",
            "choices": [f" {seed}{seed}4", " 907", " 118"],
            "key": f"{seed}{seed}4",
        }
        for seed in range(1, 5)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice = 'doc_to_choice: "{{choices}}"\ndoc_to_target: 0\ntarget_delimiter: ""\nmetric_list: [{metric: acc}]'
    key = 'doc_to_target: "{{key}}"\ngeneration_kwargs: {until: ["."], max_gen_toks: 6}\n'
    key += "metric_list: [{metric: exact_match}]"
    for name, kind, rest in (("tiny_choice", "multiple_choice", choice), ("tiny_key", "generate_until", key)):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, path=path, kind=kind, rest=rest))
    return folder


def test_simple_evaluate(task_folder: Path) -> None:
    """Both kinds of task from Python, with batches of one and of three."""
    found = [
        lm_eval.simple_evaluate(
            model="gali",
            model_args={"pretrained": "tiny", "method": "dpi", "params": METHODS["dpi"], "max_length": 1024},
            tasks=["tiny_choice", "tiny_key"],
            task_manager=TaskManager(include_path=str(task_folder), include_defaults=False),
            batch_size=size,
            device="cpu",
            bootstrap_iters=0,
        )
        for size in (1, 3)
    ]
    results = [each["results"] for each in found]
    assert results[0] == results[1]
    assert results[0]["tiny_choice"]["acc,none"] == 1.0, "pass keys beyond the window"
    said = [sample["resps"][0][0] for sample in found[1]["samples"]["tiny_key"]]
    reference = made()
    engine = ModelEngine(reference.model, reference.tokenizer)
    for sample, answer in zip(found[1]["samples"]["tiny_key"], said, strict=True):
        (expected,) = engine.generate([Request(engine.tokenizer(sample["arguments"][0][0])["input_ids"], 6)])
        assert answer == expected.text.split(".")[0]


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "tools.harness", *arguments],
        cwd=cwd, capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip


def test_a_ruler_task_of_the_harness_runs_from_the_command_line(tmp_path: Path) -> None:
    """RULER's needles over a repeated sentence, which need no download; at two windows of the embedded model."""
    pytest.importorskip("wonderwords", reason="the harness's RULER needs lm_eval[ruler]")
    done = command(
        "run", "--model", "gali", "--tasks", "niah_single_1", "--limit", "2", "--batch_size", "2", "--device", "cpu",
        "--model_args", f"pretrained={ROOT / 'models/tiny'},method=dpi,params=chunk_coe:1;local_window:256,"
        "window=512,max_length=1200", "--gen_kwargs", "max_gen_toks=20",
        "--metadata", '{"max_seq_lengths": [1024]}', "--output_path", str(tmp_path), "--log_samples",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "|niah_single_1|" in done.stdout.replace(" ", "")
    (path,) = tmp_path.rglob("samples_niah_single_1_*.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(samples) == 2
    reference = GaliLM("tiny", "dpi", {"chunk_coe": 1, "local_window": 256}, max_length=1200, device="cpu")
    engine = ModelEngine(reference.model, reference.tokenizer)
    for sample in samples:
        prompt = engine.tokenizer(sample["arguments"]["gen_args_0"]["arg_0"])["input_ids"]
        assert 700 < len(prompt) <= 1024
        (expected,) = engine.generate([Request(prompt, 20)])
        assert sample["resps"][0][0] == expected.text


def test_mistakes_are_one_line() -> None:
    done = command("run", "--model", "gali", "--model_args", "pretrained=tiny,method=dip", "--tasks", "niah_single_1")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "dip" in last
    assert "Traceback" not in done.stderr
