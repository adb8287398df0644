"""The three scripts as their users meet them: end to end, and every mistake in one line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import torch

import collect_results
import eval as eval_script
import pred
from pipeline import store
from pipeline.cli import run_script
from tasks import get_task
from tasks.base import Dialogue, Record, Task
from tasks.options import Options
from tests.pipeline.small import WORDS, save_model

Run = Callable[..., tuple[int | str | None, str, str]]
"""Runs a script with arguments; exit code, stdout, stderr."""

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"pred": pred, "eval": eval_script, "collect_results": collect_results}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration of needle and one for any benchmark, books, and the results beside them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    for number in range(3):
        (tmp_path / "books" / f"{number}.txt").write_text(f"{WORDS} " * (30 + number))
    shared = (
        f'model = "{model}"\nexp_name = "dpi-tiny-64-to-256"\nmethod = "dpi"\ntask = "needle"\nmax_pe = 256\n'
        "max_new_tokens = 3\nlimit = 6\n"
    )
    params = "[params]\nchunk_coe = 16\nlocal_window = 8\n"
    (tmp_path / "any.toml").write_text(shared + params)
    (tmp_path / "needle.toml").write_text(f"{shared}min_k = 0.15\nmax_k = 0.2\ngap = 0.05\ntimes = 1\n{params}")
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a script in this process; returns exit code, stdout, stderr."""

    def call(script: str, *arguments: object) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_script(SCRIPTS[script].main)
        out, err = capsys.readouterr()
        return end.value.code, out, err

    return call


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_pred_eval_collect_end_to_end(place: Path, run: Run) -> None:
    pg19 = ["task=pg19", f"data_dir='{place / 'books'}'", "max_pe=1500"]
    for method, params in (("dpi", None), ("repro_ntk", "{factor = 24}")):
        for keys in ([], pg19):
            chosen = [f"method={method}", f"exp_name={method}-tiny", *keys, *([f"params={params}"] if params else [])]
            file = "any.toml" if keys else "needle.toml"
            assert run("pred", "--cfg", file, *(f"--set={key}" for key in chosen))[0] == 0
    for task in ("needle", "pg19"):
        code, out, _ = run("eval", "--task", task, "--exp", "all")
        assert code == 0
        assert "result.json" in out
        code, out, _ = run("collect_results", "--task", task, "--exp", "all")
        assert code == 0
        for name in (f"{task}_dpi.xlsx", f"{task}_repro.xlsx", f"{task}.md", f"{task}.png"):
            assert (place / "results" / task / "pred" / name).stat().st_size > 0
            assert name in out
        sheet = openpyxl.load_workbook(place / f"results/{task}/pred/{task}_repro.xlsx").active
        assert sheet["A2"].value == "repro_ntk-tiny"
    result = json.loads((place / "results/needle/pred/dpi-tiny/result.json").read_text())
    assert [cell["depth_percent"] for cell in result] == [6.25 * i for i in range(1, 7)]
    result = json.loads((place / "results/pg19/pred/repro_ntk-tiny/result.json").read_text())
    assert list(result) == ["1024"]
    assert result["1024"] > 1
    code, out, _ = run("collect_results", "--task", "needle", "--exp", "dpi-tiny")
    assert code == 0
    assert (place / "results/needle/pred/dpi-tiny/needle.png").exists()
    record = json.loads((place / "results/needle/pred/dpi-tiny/run.json").read_text())
    assert record["device"] == ("CPU" if not torch.cuda.is_available() else torch.cuda.get_device_name())

    # Results alone, as a repository can carry them.
    shutil.copytree(place / "results", place / "results/reference", ignore=shutil.ignore_patterns("*.jsonl", "*.md"))
    assert run("collect_results", "--results", "results/reference", "--task", "needle", "--exp", "all")[0] == 0
    tables = [(place / root / "needle/pred/needle.md").read_text() for root in ("results", "results/reference")]
    assert tables[0] == tables[1]
    assert tables[0].count("| limited ") == 2


@pytest.mark.parametrize(
    ("task", "folder", "data", "names"),
    [
        ("longbench", "lb/pred", "longbench/subset", "lcc,trec"),
        ("leval", "le/pred", "leval", "coursera,topic_retrieval_longchat"),
    ],
)
def test_longbench_and_leval_end_to_end(
    place: Path, run: Run, shared_data: Path, task: str, folder: str, data: str, names: str
) -> None:
    keys = [f"task={task}", f"data_dir='{shared_data / data}'", "max_pe=700", "max_new_tokens=2"]
    arguments = ["--cfg", "any.toml", "--tasks", names, "--limit", "2", *(f"--set={key}" for key in keys)]
    code, out, _ = run("pred", *arguments, "--dry-run")
    assert code == 0
    assert all(name in out for name in names.split(","))
    assert run("pred", *arguments)[0] == 0
    assert run("eval", "--task", task, "--exp", "all")[0] == 0
    assert run("collect_results", "--task", task)[0] == 0
    result = json.loads((place / "results" / folder / "dpi-tiny-64-to-256/result.json").read_text())
    assert set(names.split(",")) <= set(result)
    prefix = folder.split("/")[0]
    for name in (f"{prefix}_dpi.xlsx", f"{prefix}.md", f"{prefix}.png"):
        assert (place / "results" / folder / name).stat().st_size > 0


def test_results_go_where_they_are_asked_to(place: Path, run: Run) -> None:
    assert run("pred", "--cfg", "needle.toml", "--results", "elsewhere")[0] == 0
    assert run("eval", "--task", "needle", "--exp", "dpi-tiny-64-to-256", "--results", "elsewhere")[0] == 0
    assert (place / "elsewhere/needle/pred/dpi-tiny-64-to-256/result.json").exists()
    assert not (place / "results").exists()


def test_a_record_that_fails_is_exit_code_three_until_it_succeeds(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    needle: Any = type(get_task("needle"))
    real = needle.dialogue

    def sometimes(self: Task, options: Options, dataset: str, record: Record, tokenizer: Any) -> Dialogue:
        if record["depth_percent"] == 12.5:
            raise MemoryError("no room")
        dialogue: Dialogue = real(self, options, dataset, record, tokenizer)
        return dialogue

    monkeypatch.setattr(needle, "dialogue", sometimes)
    code, _, err = run("pred", "--cfg", "needle.toml")
    assert code == 3
    assert "1 records have no prediction" in err
    path = place / "results/needle/pred/dpi-tiny-64-to-256/needle.jsonl"
    assert [line.get("error") for line in store.read_lines(path)] == [None, "MemoryError: no room", *[None] * 4]
    monkeypatch.setattr(needle, "dialogue", real)
    assert run("pred", "--cfg", "needle.toml")[0] == 0
    assert not any(store.is_failed(line) for line in store.read_lines(path))


def test_going_on_another_configuration_and_overwrite(place: Path, run: Run) -> None:
    assert run("pred", "--cfg", "needle.toml")[0] == 0
    before = snapshot(place / "results")
    code, _, err = run("pred", "--cfg", "needle.toml", "--set", "params.local_window=4")
    assert code == 2
    assert "params.local_window was 8, is 4" in err
    assert snapshot(place / "results") == before
    assert run("pred", "--cfg", "needle.toml", "--set", "params.local_window=4", "--overwrite")[0] == 0
    assert run("pred", "--cfg", "needle.toml", "--set", "params.local_window=4", "--limit", "8")[0] == 0
    assert len(store.read_lines(place / "results/needle/pred/dpi-tiny-64-to-256/needle.jsonl")) == 8


def test_dry_run_of_a_sweep_lists_it_and_only_chooses(place: Path, run: Run) -> None:
    code, out, _ = run("pred", "--cfg", ROOT / "expcfg/paper.toml", "--dry-run")
    assert code == 0
    assert "336 experiments" in out
    assert "dpi-llama2-7b-4k-to-16k" in out
    code, _, err = run("pred", "--cfg", ROOT / "expcfg/paper.toml", "--only", "nothing")
    assert code == 2
    assert "matches no experiment" in err


def test_a_sweep_runs_and_loads_a_model_once_for_its_benchmarks(
    place: Path, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import models.DPI.dpi as dpi

    loads: list[str] = []
    real = dpi.get_model_and_tokenizer

    def load(*arguments: Any, **options: Any) -> Any:
        loads.append(arguments[2])
        return real(*arguments, **options)

    monkeypatch.setattr(dpi, "get_model_and_tokenizer", load)
    (place / "sweep.toml").write_text(
        "max_new_tokens = 2\n[sweep]\nmethods = ['repro_original', 'repro_yarn']\ntasks = ['needle', 'pg19']\n"
        f"[[sweep.models]]\nmodel = '{model}'\nname = 'tiny'\nwindows = [64]\ntargets = [256]\n"
        "[sweep.task.needle]\nmin_k = 0.15\nmax_k = 0.15\ntimes = 1\n"
        f"[sweep.task.pg19]\ndata_dir = '{place / 'books'}'\n"
    )
    assert run("pred", "--cfg", "sweep.toml", "--limit", "2")[0] == 0
    assert loads == ["repro_original", "repro_yarn"]
    found = sorted(str(path.parent.relative_to(place / "results")) for path in (place / "results").rglob("run.json"))
    assert found == [
        f"{task}/pred/{name}-tiny-64-to-256" for task in ("needle", "pg19") for name in ("original", "yarn")
    ]


MISTAKES: dict[str, tuple[str, list[str], str]] = {
    "no configuration": ("pred", ["--cfg", "none.toml"], "cannot read 'none.toml'"),
    "no option": ("pred", [], "--cfg"),
    "unknown option": ("pred", ["--cfg", "needle.toml", "--overwite"], "--overwite"),
    "unknown key": ("pred", ["--cfg", "needle.toml", "--set", "max_p=3"], "did you mean 'max_pe'"),
    "another benchmark's key": (
        "pred",
        ["--cfg", "needle.toml", "--set", "task=longbench"],
        "unknown key 'min_k': it belongs to task needle, not longbench",
    ),
    "unknown task": ("pred", ["--cfg", "needle.toml", "--set", "task=needel"], "did you mean 'needle'"),
    "bad value": ("pred", ["--cfg", "needle.toml", "--set", "times=0"], "times = 0: must be greater than 0"),
    "bad type": ("pred", ["--cfg", "needle.toml", "--set", "max_pe=x"], "max_pe = 'x': must be a whole number"),
    "bad limit": ("pred", ["--cfg", "needle.toml", "--limit", "0"], "limit = 0"),
    "unknown data set": ("pred", ["--cfg", "needle.toml", "--tasks", "qasper"], "unknown data set 'qasper'"),
    "near data set": ("pred", ["--cfg", "needle.toml", "--tasks", "needl"], "of needle; did you mean 'needle'?"),
    "unknown method": ("pred", ["--cfg", "needle.toml", "--set", "method=gali"], "gali"),
    "unknown parameter": ("pred", ["--cfg", "needle.toml", "--set", "params.chunk=3"], "chunk"),
    "out of reach": (
        "pred",
        ["--cfg", "needle.toml", "--set", "method=repro_yarn", "--set", "params={factor = 2}"],
        "128",
    ),
    "a sweep's task": (
        "pred",
        ["--cfg", str(ROOT / "expcfg/quickstart/all_methods.toml"), "--set", "task.needle=1"],
        "the sweep decides 'task'",
    ),
    "no such model": ("pred", ["--cfg", "needle.toml", "--set", "model=./nowhere"], "nowhere"),
    "leaving name": ("pred", ["--cfg", "needle.toml", "--set", "exp_name=../../x"], "exp_name"),
    "no data": (
        "pred",
        ["--cfg", "any.toml", "--set", "task=pg19", "--set", "data_dir=nowhere"],
        "data_dir = 'nowhere' is no folder",
    ),
    "data that it would not read": (
        "pred",
        ["--cfg", "needle.toml", "--set", "data_dir=nowhere"],
        "data_dir = 'nowhere' is no folder",
    ),
    "results in a file": ("pred", ["--cfg", "needle.toml", "--results", "needle.toml"], "cannot make the folder"),
    "beyond the target": ("pred", ["--cfg", "needle.toml", "--set", "max_k=0.3"], "beyond max_pe"),
    "eval: no experiment": ("eval", ["--task", "needle", "--exp", "unscorde"], "did you mean 'unscored'"),
    "eval: nothing like it": ("eval", ["--task", "needle", "--exp", "none"], "does not exist; pred.py writes"),
    "eval: nothing predicted": ("eval", ["--task", "needle", "--exp", "all"], "has predictions; run pred.py again"),
    "eval: none at all": ("eval", ["--task", "pg19", "--exp", "all"], "no experiments"),
    "eval: leaving name": ("eval", ["--task", "needle", "--exp", "../.."], "exp_name"),
    "eval: unknown task": ("eval", ["--task", "niddle", "--exp", "x"], "did you mean 'needle'"),
    "collect: no experiment": ("collect_results", ["--task", "needle", "--exp", "none"], "does not exist"),
    "collect: nothing": ("collect_results", ["--task", "needle", "--exp", "all"], "has predictions; run pred.py again"),
}


@pytest.mark.parametrize("case", MISTAKES, ids=str)
def test_a_users_mistake_is_one_line_and_exit_code_two(place: Path, run: Run, case: str) -> None:
    folder = place / "results/needle/pred/unscored"
    folder.mkdir(parents=True)
    configuration = {"task": "needle", "method": "dpi", "model": "m", "params": {}, "max_pe": 256}
    store.write_json(folder / "run.json", {"config": configuration, "window": 64, "datasets": {}})
    before = snapshot(place)
    script, arguments, said = MISTAKES[case]
    code, _, err = run(script, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(lines) == 1, err
    assert said in lines[0]
    assert "Traceback" not in err
    assert snapshot(place) == before


@pytest.mark.parametrize(("line", "repaired"), [(0, False), (2, False), (5, True)])
def test_a_torn_file_is_repaired_at_its_end_and_refused_elsewhere(
    place: Path, run: Run, line: int, repaired: bool
) -> None:
    assert run("pred", "--cfg", "needle.toml")[0] == 0
    path = place / "results/needle/pred/dpi-tiny-64-to-256/needle.jsonl"
    whole = path.read_bytes()
    pieces = whole.splitlines(keepends=True)
    pieces[line] = pieces[line][: len(pieces[line]) // 2] + (b"" if repaired else b"\n")
    path.write_bytes(b"".join(pieces))
    before = snapshot(place)
    code, _, err = run("eval", "--task", "needle", "--exp", "dpi-tiny-64-to-256")
    assert code == 2
    assert f"line {line + 1}" in err
    assert snapshot(place) == before
    code, _, err = run("pred", "--cfg", "needle.toml")
    if repaired:
        assert code == 0
        assert path.read_bytes() == whole
    else:
        assert code == 2
        assert f"line {line + 1}" in err
        assert path.read_bytes() == b"".join(pieces)


def test_as_a_command(place: Path) -> None:
    """The real process: exit code and nothing but the line on stderr."""
    done = subprocess.run([sys.executable, str(ROOT / "pred.py"), "--cfg", "none.toml"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: cannot read 'none.toml': No such file or directory\n"


def test_two_processes_of_torchrun_give_the_files_of_one(place: Path, run: Run) -> None:
    assert run("pred", "--cfg", "needle.toml", "--results", "one", "--limit", "5")[0] == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "pred.py"), "--cfg", "needle.toml", "--results", "two", "--limit", "5"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    single, double = (place / name / "needle/pred/dpi-tiny-64-to-256" for name in ("one", "two"))
    assert (double / "needle.jsonl").read_bytes() == (single / "needle.jsonl").read_bytes()
    assert json.loads((double / "run.json").read_text())["processes"] == 2
    assert not list(double.glob(".part-*"))


@pytest.mark.parametrize(
    ("task", "folder", "keys"),
    [
        ("longbench", "lb/pred", ["tasks=['qasper', 'trec']", "max_new_tokens=3"]),
        ("leval", "le/pred", ["tasks=['tpo', 'gsm100']", "max_new_tokens=3"]),
        ("pg19", "pg19/pred", ["step=512"]),
        ("needle", "needle/pred", ["lengths=[0.4, 1.1]", "depths=2", "times=1", "max_new_tokens=8"]),
    ],
)
def test_four_benchmarks_on_the_embedded_model(
    place: Path, run: Run, shared_data: Path, task: str, folder: str, keys: list[str]
) -> None:
    data = {"longbench": "longbench/subset", "leval": "leval", "pg19": "books/test", "needle": ""}[task]
    chosen = [f"task={task}", f"data_dir='{shared_data / data}'", "model=tiny", "max_pe=1300", "limit=2", *keys]
    assert run("pred", "--cfg", "any.toml", *(f"--set={key}" for key in chosen))[0] == 0
    assert run("eval", "--task", task, "--exp", "all")[0] == 0
    assert run("collect_results", "--task", task)[0] == 0
    results = place / "results" / folder
    assert list(results.glob("*_dpi.xlsx"))
    assert list(results.glob("*.md"))
    assert list(results.glob("*.png"))
    result = json.loads((results / "dpi-tiny-64-to-256/result.json").read_text())
    if task == "needle":
        assert [cell["score"] for cell in result] == [1.0, 1.0]  # two records within the window
    if task == "pg19":
        assert set(result) == {"512", "1024"}
        assert all(1 < value < 200 for value in result.values())
