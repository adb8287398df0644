"""Whatever is in a file, its reader gives a value or one line that says what is wrong."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline import report, store
from pipeline.config import build_config, read_toml
from pipeline.scoring import score_experiment
from tasks import get_task, task_names
from tasks.errors import UserError
from tasks.jsonl import read_rows

FAST = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

KEYS = st.sampled_from(
    [
        "id", "pred", "error", "answers", "all_classes", "length", "prefill_len", "final_len", "prompt_len", "turn",
        "evaluation", "gt", "llama_pred", "context_length", "depth_percent", "answer", "loss_sum", "loss_sums",
        "scored_tokens", "config", "window", "datasets", "versions", "task", "params", "method", "model", "exp_name",
        "max_pe", "seed", "records", "limited", "run", "score", "stderr", "count", "1024", "qasper", "trec",
        "LEval_score", "accuracy", "steps", "by_length", "context", "input", "tpo", "0-4k",
    ]
) | st.text(max_size=4)  # fmt: skip
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["needle", "dpi", "exam", "\ud800", "=1+1", "NaN"])
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=12
)
OBJECTS = st.dictionaries(KEYS, JSON, max_size=8)
TEXTS = st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode())


def ends_well(read: Callable[[], Any]) -> None:
    """The reader returns, or says in one line what is wrong."""
    said = "nothing"
    try:
        read()
    except UserError as error:
        said = str(error)
    assert said
    assert "\n" not in said


@FAST
@given(st.lists(TEXTS, max_size=4))
@example([b"[" * 50_000])
def test_any_lines(pieces: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.jsonl"
        path.write_bytes(b"\n".join(pieces))
        ends_well(lambda: read_rows(path, ("input", "answers")))
        ends_well(lambda: store.read_lines(path))
        ends_well(lambda: store.merge(Path(folder), "d", ["a"]))


@FAST
@given(TEXTS)
def test_any_run_record_and_configuration(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        path.write_bytes(data)
        ends_well(lambda: store.read_run(Path(folder)))
        ends_well(lambda: read_toml(path))


@FAST
@given(OBJECTS)
def test_any_configuration(content: dict[str, Any]) -> None:
    ends_well(lambda: build_config({"model": "m", "method": "dpi", "exp_name": "e", **content}, "here"))


LINES: dict[str, dict[str, Any]] = {
    "needle": {"id": "a", "context_length": 1000, "depth_percent": 50.0, "answer": "1", "pred": "1"},
    "passkey_retrieval": {"id": "a", "depth_percent": 50.0, "answer": "1", "pred": "1"},
    "pg19": {"id": "a", "scored_tokens": 9, "loss_sum": 9.0, "loss_sums": {"1024": 9.0}},
    "longbench": {"pred": "x", "answers": ["x"], "all_classes": ["x"], "length": 9, "prefill_len": 9},
    "longbench_e": {"pred": "x", "answers": ["x"], "all_classes": ["x"], "length": 9, "prefill_len": 9},
    "leval": {"pred": "x", "gt": "x", "evaluation": "exam"},
}
DATASETS = {"longbench": "trec", "longbench_e": "trec", "leval": "tpo", "pg19": "books"}


@FAST
@given(changes=OBJECTS, results=JSON)
@pytest.mark.parametrize("name", [name for name in task_names() if name in LINES])
def test_any_line_is_scored_and_any_result_collected(name: str, changes: dict[str, Any], results: Any) -> None:
    task = get_task(name)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / task.folder / "dpi-x"
        folder.mkdir(parents=True)
        extra = {"n_garbage": 60} if name == "passkey_retrieval" else {}
        config = {"model": "m", "method": "dpi", "exp_name": "dpi-x", "task": name, "max_pe": 2048, **extra}
        datasets = {"d": {"records": 1, "limited": False}}
        store.write_json(folder / "run.json", {"config": config, "window": 64, "datasets": datasets})
        path = folder / f"{DATASETS.get(name, name)}.jsonl"
        path.write_text(json.dumps({**LINES[name], **changes}) + "\n")
        ends_well(lambda: score_experiment(folder, task))
        ends_well(lambda: report.read_experiment(folder, task))
        (folder / "result.json").write_text(json.dumps(results))
        ends_well(lambda: report.read_experiment(folder, task))
