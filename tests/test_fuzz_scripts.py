"""Whatever is in a file, the scripts end with 0, 2 or 3, and say in one line what is wrong and in which file.

`pytest -m fuzz` goes on for GALI_FUZZ_SECONDS (600): it draws new cases each time and counts how they ended.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import sys
import time
import traceback
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from pipeline import store
from pipeline.cli import run_script
from tasks import get_task
from tests.malformed import CHANGES, RAW, WRONG, Change, safetensors_header, shard_index, write
from tests.pipeline.small import save_model
from tests.test_cli import SCRIPTS

Ends = collections.Counter[str]

ROW = {"input": "What is it?", "context": "It is. ", "answers": ["it"], "length": 3, "all_classes": None, "_id": "a"}
LINES = {
    "needle": {"id": "a", "context_length": 150, "depth_percent": 50.0, "answer": "1", "pred": "1"},
    "longbench": {
        "id": "a", "pred": "x", "answers": ["x"], "all_classes": ["x"], "length": 9, "prefill_len": 9, "final_len": 9,
        "prompt_len": 9,
    },
    "leval": {"id": "a", "pred": "A", "gt": "A", "evaluation": "exam", "turn": 0},
    "pg19": {"id": "a", "scored_tokens": 1023, "loss_sum": 9.0, "loss_sums": {"1024": 9.0}, "prefill_len": 1024},
}  # fmt: skip
FILES = {
    "needle": "needle/pred/e/needle.jsonl",
    "longbench": "lb/pred/e/trec.jsonl",
    "leval": "le/pred/e/tpo.jsonl",
    "pg19": "pg19/pred/e/pg19.jsonl",
}


class Place:
    """A folder with a configuration, data, a model, and scored experiments of four benchmarks, all of them right."""

    def __init__(self, root: Path) -> None:
        self.root = root
        save_model(root / "model")
        shared = 'model = "./model"\nexp_name = "e"\nmethod = "dpi"\nlimit = 1\nmax_new_tokens = 2\n'
        params = "[params]\nchunk_coe = 16\nlocal_window = 8\n"
        keys = 'task = "needle"\nmax_pe = 256\nmin_k = 0.15\nmax_k = 0.2\ngap = 0.05\ntimes = 1\ndepths = 2\n'
        write(root / "needle.toml", f"{shared}{keys}{params}".encode())
        keys = 'task = "longbench"\nmax_pe = 256\ntasks = ["qasper"]\ndata_dir = "data"\n'
        write(root / "longbench.toml", f"{shared}{keys}{params}".encode())
        sweep = '[sweep]\ntasks = ["needle"]\nmethods = ["dpi", "repro_se"]\n[[sweep.models]]\nmodel = "./model"\n'
        write(root / "sweep.toml", f'{sweep}name = "m"\nwindows = [64]\ntargets = [256]\n'.encode())
        write(root / "data/qasper.jsonl", b"".join(json.dumps(ROW).encode() + b"\n" for _ in range(3)))
        for task, line in LINES.items():
            path = root / "results" / FILES[task]
            write(path, b"".join(json.dumps({**line, "id": name}).encode() + b"\n" for name in "ab"))
            config = {"model": "m", "method": "dpi", "exp_name": "e", "task": task, "max_pe": 2048, "params": {}}
            run = {"config": config, "window": 64, "datasets": {path.stem: {"records": 2, "limited": False}}}
            store.write_json(path.parent / "run.json", run)
            assert self.run("eval", task)[0] == "0"
            assert self.run("collect_results", task)[0] == "0"

    def run(self, script: str, *arguments: str) -> tuple[str, str]:
        """Run a script on a benchmark, or pred on arguments; returns the exit code, or a traceback, and stderr."""
        words = list(arguments) if script == "pred" else ["--task", *arguments, "--exp", "all"]
        err = io.StringIO()
        before = sys.argv
        sys.argv = [script, *words]
        try:
            with (
                contextlib.redirect_stderr(err),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.chdir(self.root),
            ):
                run_script(SCRIPTS[script].main)
        except SystemExit as end:
            return str(end.code), err.getvalue()
        except BaseException:
            return traceback.format_exc(), err.getvalue()
        finally:
            sys.argv = before

    def case(self, file: str, content: bytes, commands: list[tuple[str, ...]], ends: Ends | None = None) -> None:
        """Run commands with one file made wrong. What they say must be one line that names it."""
        path = self.root / file
        before = {other: other.read_bytes() for other in (self.root / "results").rglob("*") if other.is_file()}
        good = path.read_bytes() if path.exists() else None
        write(path, content)
        try:
            for command in commands:
                begin, busy = time.monotonic(), time.process_time()
                code, err = self.run(*command)
                took, worked = time.monotonic() - begin, time.process_time() - busy
                what = f"{' '.join(command)} with {file} = {content[:300]!r}: {code}\n{err}"
                assert code in ("0", "2", "3"), what
                errors = [line for line in err.splitlines() if line.startswith("error: ")]
                assert len(errors) == 1 or (code != "2" and not errors), what
                names = {"model": [path.parent.name]}.get(
                    path.parent.name, [path.name, path.stem, str(path.parent.relative_to(self.root))]
                )
                names += [f"{get_task(task).prefix}.png" for task in LINES]  # of several files
                if file.startswith("results/") and not content.strip():
                    names.append(str(Path(file).parent.parent))  # in which no experiment has predictions
                if path.suffix == ".toml":
                    names = [path.name]
                assert not errors or any(name in errors[0] for name in names), what
                assert worked < 30, f"{worked:.0f} s: {what}"
                assert took < 300, f"{took:.0f} s: {what}"  # a busy machine is no fault
                if ends is not None:
                    ends[f"{command[0]} {path.name}: {code}"] += 1
        finally:
            if good is None:
                path.unlink()
            else:
                path.write_bytes(good)
            for other in (self.root / "results").rglob("*"):
                if other.is_file() and other not in before:
                    other.unlink()
            for other, old in before.items():
                if not other.exists() or other.read_bytes() != old:
                    write(other, old)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("fuzz"))


PRED: list[tuple[str, ...]] = [("pred", "--cfg", "longbench.toml", "--results", "new")]
TARGETS: dict[str, list[tuple[str, ...]]] = {
    "needle.toml": [("pred", "--cfg", "needle.toml", "--dry-run", "--limit", "1")],
    "longbench.toml": [("pred", "--cfg", "longbench.toml", "--dry-run", "--limit", "1")],
    "sweep.toml": [("pred", "--cfg", "sweep.toml", "--dry-run")],
    "data/qasper.jsonl": [("pred", "--cfg", "longbench.toml", "--dry-run")],
    **{f"model/{name}": PRED for name in ("config.json", "tokenizer.json", "tokenizer_config.json")},
    "model/model.safetensors": PRED,
    "model/model.safetensors.index.json": PRED,
    "model/generation_config.json": PRED,
    **{f"results/{file}": [("eval", task), ("collect_results", task)] for task, file in FILES.items()},
    **{
        f"results/{Path(file).parent}/{name}": [("collect_results", task)]
        for task, file in FILES.items()
        for name in ("result.json", "result_detail.json")
    },
    **{f"results/{Path(file).parent}/run.json": [("eval", task)] for task, file in FILES.items()},
}
"""Which file is made wrong, and which commands read it."""
CHEAP = [file for file in TARGETS if not file.startswith("model/")]


def wrong(place: Place, file: str, change: Change) -> bytes:
    path = place.root / file
    content = path.read_bytes() if path.exists() else shard_index("model.safetensors")
    return change.apply(content, lines=file.endswith(".jsonl"))


CORPUS: list[tuple[str, bytes | Change]] = [
    *(("longbench.toml", Change(kind)) for kind in RAW),
    *(("data/qasper.jsonl", Change(kind)) for kind in RAW),
    *(("results/needle/pred/e/needle.jsonl", Change(kind)) for kind in RAW),
    *(("results/lb/pred/e/run.json", Change(kind)) for kind in RAW),
    *(("results/pg19/pred/e/result.json", Change(kind)) for kind in ("digits", "deep", "NaN", "list", "text")),
    *(
        ("results/needle/pred/e/run.json", json.dumps({"config": {"task": task, "method": "dpi"}}).encode())
        for task in ("", "nedle")
    ),
    ("results/needle/pred/e/result.json", b'[{"context_length": 150, "score": 1.0}]'),
    ("results/needle/pred/e/result.json", b'[{"context_length": 150, "depth_percent": [null], "score": 1.0}]'),
    ("results/pg19/pred/e/result.json", b'{"1024": 1e+308}'),
    ("results/pg19/pred/e/pg19.jsonl", json.dumps({**LINES["pg19"], "loss_sum": None}).encode()),
    ("results/pg19/pred/e/pg19.jsonl", json.dumps({**LINES["pg19"], "loss_sums": {"1024": 1e308}}).encode()),
    ("results/lb/pred/e/trec.jsonl", b""),
    ("results/pg19/pred/e/pg19.jsonl", json.dumps({**LINES["pg19"], "loss_sums": None}).encode()),
    *(("results/le/pred/e/tpo.jsonl", Change("set", 0.3, value)) for value in WRONG[::3]),
    ("model/model.safetensors.index.json", shard_index("pytorch_model.bin")),
    ("model/model.safetensors", Change("cut", 0.7)),
    ("model/model.safetensors", safetensors_header({}, 2**63)),
    ("model/model.safetensors", safetensors_header({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}})),
    ("model/config.json", Change("deep")),
    ("model/config.json", b'{"model_type": "llama", "max_position_embeddings": 64, "num_hidden_layers": 100000000}'),
    ("model/config.json", b'{"model_type": "llama", "max_position_embeddings": 64, "num_hidden_layers": %d}' % 2**63),
    ("model/tokenizer.json", Change("NUL")),
]
"""Cases that once ended in a traceback or took for ever, and their kin."""


@pytest.mark.timeout(600)
def test_the_corpus(place: Place) -> None:
    for file, change in CORPUS:
        place.case(file, change if isinstance(change, bytes) else wrong(place, file, change), TARGETS[file])


def draw(place: Place, files: list[str], number: int, count: int, ends: Ends | None = None) -> None:
    """`count` new cases. number: of the draw, which repeats them."""

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # a case is small as it is
    )
    @given(file=st.sampled_from(files), change=CHANGES)
    def cases(file: str, change: Change) -> None:
        place.case(file, wrong(place, file, change), TARGETS[file], ends)

    cases()


@pytest.mark.timeout(600)
def test_a_few_cases(place: Place) -> None:
    draw(place, CHEAP, 0, 25)


@pytest.mark.fuzz
@pytest.mark.timeout(0)
def test_many_cases(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    ends: Ends = collections.Counter()
    failures: list[str] = []
    stop = time.monotonic() + float(os.environ.get("GALI_FUZZ_SECONDS", "600"))
    number = int(os.environ.get("GALI_FUZZ_FIRST", "1"))
    while time.monotonic() < stop:
        try:
            draw(place, list(TARGETS), number, 30, ends)
        except (AssertionError, ExceptionGroup) as error:  # hypothesis makes groups of what does not come again
            failures.append(f"draw {number}: {error}")
        number += 1
    with capsys.disabled():
        sys.stderr.write("".join(f"{count:6} {name}\n" for name, count in sorted(ends.items())))
        sys.stderr.write(f"{sum(ends.values())} runs, {len(failures)} failures\n")
    assert not failures, "\n\n".join(failures)
