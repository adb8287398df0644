"""What the three scripts show on a terminal of 80 columns, and what they leave behind."""

import json
import logging
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import pred
from pipeline import store
from tests.test_cli import ROOT, Run, model, place, run, snapshot

__all__ = ["model", "place", "run"]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def rows_of(out: str) -> dict[str, list[str]]:
    """The lines of a table by their first word."""
    return {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}


def check_width(out: str) -> None:
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "…" not in out


def qa(pred: str, **keys: Any) -> dict[str, Any]:
    return {"pred": pred, "answers": ["yes"], "all_classes": ["yes", "no"], **keys}


def test_eval_shows_scores_with_intervals_counts_and_what_is_absent(place: Path, run: Run) -> None:
    folder = place / "results/lb/pred/theirs"
    write_lines(folder / "qasper.jsonl", [qa("yes"), qa("yes"), qa("no"), {"error": "OOM"}])
    write_lines(folder / "passage_retrieval_en.jsonl", [{"error": "OOM"}])
    code, out, _ = run("eval", "--task", "longbench", "--exp", "theirs")
    assert code == 0
    check_width(out)
    rows = rows_of(out)
    assert rows["qasper"][0] == "66.67"
    assert rows["qasper"][2] == "to"
    low, high = float(rows["qasper"][1]), float(rows["qasper"][3])
    assert 0 < low < 66.67 < high < 100
    assert rows["qasper"][4:] == ["3", "-", "1"]
    assert rows["passage_retrieval_en"] == ["-", "-", "0", "-", "1"]
    assert "3 are predicted, 2 failed" in out
    assert "absent, without a file of predictions: narrativeqa, multifieldqa_en" in " ".join(out.split())
    assert "results/lb/pred/theirs/result.json" in out
    assert out.splitlines()[-1] == "next: python collect_results.py --task longbench --exp all"


def test_eval_of_a_run_says_records_and_where_it_lies(place: Path, run: Run) -> None:
    assert run("pred", "--cfg", "needle.toml", "--results", "some where")[0] == 0
    code, out, _ = run("eval", "--task", "needle", "--exp", "all", "--results", "some where")
    assert code == 0
    check_width(out)
    assert rows_of(out)["150"][-1] == "6"
    assert "of 6 records 6 are predicted, 0 failed; the run was limited" in out
    assert "some where/needle/pred/dpi-tiny-64-to-256/result.json" in out
    assert out.splitlines()[-1].endswith("--task needle --exp all --results 'some where'")


def test_a_run_says_where_it_lies_and_what_scores_it(place: Path, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pred")
    code, *_ = run("pred", "--cfg", "needle.toml", "--results", "some where", "--set", "exp_name=my run")
    assert code == 0
    said = [record.getMessage() for record in caplog.records if record.name == "pred"]
    assert said[0].endswith("my run (needle): 6 records, 0 failed; in some where/needle/pred/my run")
    command = shlex.split(said[1].partition("next: python ")[2])
    assert command == ["eval.py", "--task", "needle", "--exp", "my run", "--results", "some where"]
    assert run("eval", *command[1:])[0] == 0


def test_perplexities_are_not_called_scores(place: Path, run: Run) -> None:
    assert run("pred", "--cfg", "any.toml", "--set", "task=pg19", "--set", "data_dir=books", "--set", "step=64")[0] == 0
    out = run("eval", "--task", "pg19", "--exp", "all")[1]
    assert out.splitlines()[1].split()[:2] == ["tokens", "perplexity"]
    assert run("collect_results", "--task", "pg19")[0] == 0
    assert (place / "results/pg19/pred/pg19.md").read_text().startswith("# PG19: perplexity\n")
    assert "<h1>PG19: perplexity</h1>" in (place / "results/pg19/pred/pg19.html").read_text()


def test_eval_of_l_eval_without_code_u_scores_the_others_and_names_it(place: Path, run: Run) -> None:
    """A foreign folder, and the official names of its files."""
    line = {"pred": "A", "gt": "A", "evaluation": "exam", "query": "?"}
    for dataset in ("coursera", "gsm100", "quality", "tpo", "sci_fi", "topic_retrieval_longchat"):
        name = f"{dataset}.pred.jsonl" if dataset == "tpo" else f"{dataset}.jsonl"
        if dataset == "sci_fi":
            line = {**line, "gt": "True [fact: False]"}
        write_lines(place / "results/le/pred/theirs" / name, [line, {**line, "pred": "B"}])
    code, out, _ = run("eval", "--task", "leval", "--exp", "theirs")
    assert code == 0
    check_width(out)
    result = json.loads((place / "results/le/pred/theirs/result.json").read_text())
    assert "codeU" not in result
    assert len(result) == 6
    assert "absent, without a file of predictions: codeU\n" in out


def test_a_length_range_without_records_is_said(place: Path, run: Run) -> None:
    write_lines(place / "results/lb/pred_e/theirs/qasper.jsonl", [qa("yes", length=3000), qa("no", length=9000)])
    code, out, _ = run("eval", "--task", "longbench_e", "--exp", "theirs")
    assert code == 0
    check_width(out)
    assert "without records (1 of 3): qasper 4-8k" in out
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("qasper ")] == ["1", "0", "1"]


@pytest.mark.parametrize("script", ["eval", "collect_results"])
def test_a_wrong_name_gets_the_nearest_experiment(place: Path, run: Run, script: str) -> None:
    write_lines(place / "results/lb/pred/dpi-llama2-7b-4k-to-16k/qasper.jsonl", [qa("yes")])
    code, _, err = run(script, "--task", "longbench", "--exp", "dpi-llama2-7b-4k-to-8k")
    assert code == 2
    assert "does not exist; did you mean 'dpi-llama2-7b-4k-to-16k'?" in err


def test_an_experiment_of_another_benchmark_is_named_with_it(place: Path, run: Run) -> None:
    assert run("pred", "--cfg", "needle.toml")[0] == 0
    code, _, err = run("eval", "--task", "longbench", "--exp", "dpi-tiny-64-to-256")
    assert code == 2
    assert "does not exist; it is one of --task needle" in err
    code, _, err = run("eval", "--task", "passkey_retrieval", "--exp", "dpi-tiny-64-to-25")
    assert "does not exist; pred.py writes experiments" in err


def test_all_leaves_out_what_holds_nothing_and_names_it(place: Path, run: Run) -> None:
    assert run("pred", "--cfg", "needle.toml")[0] == 0
    empty = place / "results/needle/pred/aaa"
    empty.mkdir()
    store.write_json(empty / "run.json", {"config": {"task": "needle"}})
    for script in ("eval", "collect_results"):
        code, out, err = run(script, "--task", "needle", "--exp", "all")
        assert code == 0
        assert "without predictions, left out: aaa" in err
        assert "aaa" not in out
    code, _, err = run("eval", "--task", "needle", "--exp", "aaa")
    assert code == 2
    assert "'results/needle/pred/aaa' has no prediction files" in err
    (place / "results/needle/pred/dpi-tiny-64-to-256/needle.jsonl").unlink()
    code, _, err = run("eval", "--task", "needle", "--exp", "all")
    assert code == 2
    assert "no experiment of 'needle' in 'results/needle/pred' has predictions" in err
    assert run("collect_results", "--task", "needle")[0] == 0, "scores are kept without their predictions"


def test_data_sets_that_a_folder_lacks_are_left_out_unless_they_are_asked_for(place: Path, run: Run) -> None:
    document = {"input": "The sky is blue. " * 9, "instructions": ["Go"], "outputs": ["A"], "evaluation": "exam"}
    for dataset in ("tpo", "coursera"):
        write_lines(place / f"data/{dataset}.jsonl", [document])
    keys = ["task=leval", "data_dir=data", "max_pe=700", "max_new_tokens=2"]
    arguments = ["--cfg", "any.toml", *(f"--set={key}" for key in keys)]
    for dry in ([], ["--dry-run"]):
        code, _, err = run("pred", *arguments, "--tasks", "tpo,codeU", *dry)
        assert code == 2
        assert "data_dir has no 'codeU.jsonl'" in err
        assert not (place / "results").exists()
    code, out, err = run("pred", *arguments, "--dry-run")
    assert code == 0
    assert {"tpo", "coursera"} <= rows_of(out).keys()
    code, _, err = run("pred", *arguments)
    assert code == 0
    assert "has no file of gsm100, quality, codeU, sci_fi, topic_retrieval_longchat" in err
    folder = place / "results/le/pred/dpi-tiny-64-to-256"
    assert sorted(path.stem for path in folder.glob("*.jsonl")) == ["coursera", "tpo"]
    assert set(json.loads((folder / "run.json").read_text())["datasets"]) == {"coursera", "tpo"}
    code, out, _ = run("eval", "--task", "leval", "--exp", "all")
    assert code == 0
    assert "codeU" in out.partition("absent")[2]
    shutil.rmtree(place / "data")
    (place / "data").mkdir()
    code, _, err = run("pred", *arguments, "--set", "exp_name=none")
    assert code == 2
    assert "nor has it any other data set of leval" in err


BAD_STARTS = [
    "model=./nowhere", "device=cuda:99", "device_map=nowhere", "attn_impl=triton", "tp_plan=x", "max_pe=63", "dtype=x",
    "params.x=1", "data_dir=nowhere", "method=repro_ntk", "max_new_tokens=x",
]  # fmt: skip


@pytest.mark.parametrize("key", BAD_STARTS)
def test_a_dry_run_refuses_what_the_run_would_and_neither_leaves_anything(place: Path, run: Run, key: str) -> None:
    shared = ["--cfg", "any.toml", "--set", "task=longbench", "--set", "tasks=['qasper']"]
    if "data_dir" not in key:
        fields = {"input": "Why?", "context": "The sky is blue.", "answers": ["x"], "length": 4}
        write_lines(place / "data/qasper.jsonl", [fields])
        shared += ["--set", "data_dir=data"]
    before = snapshot(place)
    said = []
    for dry in ([], ["--dry-run"]):
        code, _, err = run("pred", *shared, "--set", key, *dry)
        assert code == 2
        assert "cannot load the model" not in err
        said.append(err.splitlines()[-1])
        assert said[-1].count("any.toml: ") == 1
        assert snapshot(place) == before
        assert not (place / "results").exists()
    assert said[0] == said[1]


def test_a_model_without_weights_leaves_no_folder_and_an_old_one_as_it_was(place: Path, run: Run, model: Path) -> None:
    shutil.copytree(model, place / "broken")
    (place / "broken/model.safetensors").write_bytes(b"")
    code, _, err = run("pred", "--cfg", "needle.toml", "--set", "model=./broken")
    assert code == 2
    assert "cannot load the model './broken'" in err
    assert [path.name for path in (place / "results").iterdir()] == ["errors.log"], (
        "the traceback, which the line names"
    )


def test_a_dry_run_counts_and_measures_and_writes_nothing(place: Path, run: Run) -> None:
    code, out, _ = run("pred", "--cfg", "needle.toml", "--dry-run")
    assert code == 0
    check_width(out)
    assert rows_of(out)["needle"] == ["6", "150", "150", "150", "150", "150", "100%"]
    assert "GiB" in out
    assert "time in one process here: under 10 s\n  prompts under 10 s" in out
    assert "from 150 tokens and 8 new ones, measured in" in out
    assert not (place / "results").exists()


def test_a_dry_run_loads_no_large_weights(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.DPI.dpi.get_model_and_tokenizer", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr("pipeline.dry_run.MOST_WEIGHTS", 1000)
    code, out, _ = run("pred", "--cfg", "needle.toml", "--dry-run")
    assert code == 0
    assert "time: not estimated" in out


def test_a_dry_run_of_several_experiments_has_totals_by_task(place: Path, run: Run, model: Path) -> None:
    (place / "sweep.toml").write_text(
        "max_new_tokens = 2\n[sweep]\nmethods = ['repro_original', 'repro_yarn']\ntasks = ['needle', 'pg19']\n"
        f"[[sweep.models]]\nmodel = '{model}'\nname = 'tiny'\nwindows = [64]\ntargets = [256]\n"
        "[sweep.task.needle]\nlengths = [0.15]\ntimes = 1\ndepths = 3\n[sweep.task.pg19]\ndata_dir = 'books'\n"
    )
    code, out, _ = run("pred", "--cfg", "sweep.toml", "--dry-run", "--only", "*")
    assert code == 0
    check_width(out)
    totals = rows_of(out.rpartition("\n\n")[2])
    assert totals["needle"][:3] == ["2", "6", "900"]
    assert totals["pg19"][:3] == ["2", "6", "1,536"]
    code, out, _ = run("pred", "--cfg", "sweep.toml", "--dry-run")
    assert code == 0
    check_width(out)
    assert rows_of(out)["needle"] == rows_of(out)["pg19"] == ["2"]
    shutil.rmtree(place / "books")
    code, _, err = run("pred", "--cfg", "sweep.toml", "--dry-run")
    assert code == 2
    assert "data_dir = 'books' is no folder" in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("model = './model'", "model = './nowhere'"), "model: './nowhere' is neither a folder"),
        (("windows = [64]", "windows = [64, 300]"), "max_pe = 256 is below the window of 300 tokens"),
        (("max_new_tokens = 2", "max_new_tokens = 2\nattn_impl = 'flash'"), "CUDA"),
        (("seed = 42", "seed = 43"), "was made with another configuration: seed was 42, is 43"),
    ],
)
def test_a_sweeps_dry_run_refuses_what_the_run_would(
    place: Path, run: Run, model: Path, change: tuple[str, str], said: str
) -> None:
    shutil.copytree(model, place / "model")
    content = (
        "max_new_tokens = 2\nseed = 42\n[sweep]\nmethods = ['repro_yarn']\ntasks = ['needle']\n"
        "[[sweep.models]]\nmodel = './model'\nname = 'tiny'\nwindows = [64]\ntargets = [256]\n"
        "[sweep.task.needle]\nlengths = [0.15]\ntimes = 1\ndepths = 1\n"
    )
    (place / "sweep.toml").write_text(content)
    assert run("pred", "--cfg", "sweep.toml", "--dry-run")[0] == 0
    if "another" in said:
        assert run("pred", "--cfg", "sweep.toml")[0] == 0
    (place / "sweep.toml").write_text(content.replace(*change))
    lines = []
    for dry in (["--dry-run"], []):
        code, _, err = run("pred", "--cfg", "sweep.toml", *dry)
        assert code == 2
        lines.append(err.splitlines()[-1])
    assert lines[0] == lines[1]
    assert re.search(rf"^error: sweep\.toml: .*{said}", lines[0])


def test_a_sweep_of_models_that_are_out_of_reach_is_listed(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.hub.silence", lambda: "the hub sleeps")
    (place / "sweep.toml").write_text(
        "[sweep]\nmethods = ['repro_yarn']\ntasks = ['needle']\n[[sweep.models]]\nmodel = 'nobody/nothing'\n"
        "name = 'n'\nwindows = [64]\ntargets = [256]\n"
    )
    code, out, _ = run("pred", "--cfg", "sweep.toml", "--dry-run")
    assert code == 0
    assert "not checked, as the hub does not answer: nobody/nothing" in out
    code, _, err = run("pred", "--cfg", "sweep.toml", "--dry-run", "--only", "*")
    assert code == 2
    assert "sweep.toml: cannot load the model 'nobody/nothing': the hub sleeps" in err


def test_the_papers_sweep_fits_the_terminal(place: Path, run: Run) -> None:
    code, out, _ = run("pred", "--cfg", ROOT / "expcfg/paper.toml", "--dry-run")
    assert code == 0
    check_width(out)
    assert rows_of(out)["dynamic_ntk-llama3-8b-2k-to-32k"] == ["2,048", "32,768", "4"]
    assert rows_of(out)["longbench"] == ["84"]


def test_only_the_reminder_of_the_length_is_silenced(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of 150 tokens on a window of 64. Without the filter transformers reminds, once a process."""
    logger = logging.getLogger("transformers.generation.stopping_criteria")
    said: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    logger.addHandler(handler)
    once: Any = logging.Logger.warning_once  # type: ignore[attr-defined]
    silent = pred._is_no_reminder
    for filtered in (True, False):
        if not filtered:
            logger.removeFilter(silent)
            monkeypatch.setattr(pred, "_is_no_reminder", lambda record: True)
        once.cache_clear()
        assert run("pred", "--cfg", "needle.toml", "--limit", "1", "--overwrite")[0] == 0
        assert any("predefined maximum length" in text for text in said) != filtered
    logger.removeHandler(handler)
    logger.filters.clear()
    logger.addFilter(silent)
    said.clear()
    logger.addHandler(handler)
    logger.warning("something else")
    assert said == ["something else"]
    logger.removeHandler(handler)
    logger.filters.clear()
