"""What each benchmark puts into tables, from its own result files and from those of others and of earlier versions."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from tasks import get_task, task_names
from tasks.base import Line
from tasks.metrics.bootstrap import bootstrap_stderr
from tasks.pg19 import cumulative_losses
from tasks.results import Score
from tests.tasks.fakes import interval_of_marks, options


def trial(pred: str, **fields: object) -> Line:
    return {"answer": "1", "pred": pred, **fields}


def cell(pred: str, length: int, depth: float) -> Line:
    return trial(pred, context_length=length, depth_percent=depth)


def marked(pred: str, **fields: object) -> Line:
    """A prediction of LongBench."""
    return {"pred": pred, "answers": ["Ann"], "all_classes": None, "length": 10, "prompt_len": 500, **fields}


def exam(pred: str) -> Line:
    return {"pred": pred, "gt": "A", "evaluation": "exam"}


LINES: dict[str, dict[str, list[Line]]] = {
    "needle": {
        "needle": [cell("1", 9000, 50.0), cell("0", 9000, 100.0), *[cell("1", 500, 100.0) for _ in range(2)]],
    },
    "passkey_retrieval": {"passkey_retrieval": [trial("1"), trial("0"), trial("0"), trial("0")]},
    "ruler": {
        "vt": [
            {"context_length": length, "answers": ["AB", "CD"], "pred": pred}
            for length, pred in ((900, "ab cd"), (500, "AB"), (500, "no"))
        ],
        "fwe": [{"context_length": 500, "answers": ["a", "b", "c"], "pred": "c b a"}],
    },
    "pg19": {"pg19": [cumulative_losses([2.0] * 1023), cumulative_losses([1.0] * 10_300)]},
    "longbench": {
        "qasper": [marked("Ann"), marked("no", prompt_len=9000), marked("no")],
        "hotpotqa": [marked("Ann", prompt_len=9000), marked("no", prompt_len=9000)],
    },
    "longbench_e": {"qasper": [marked("Ann"), marked("no"), marked("Ann", length=9000)]},
    "leval": {
        "tpo": [exam("A"), exam("B"), exam("A"), exam("A")],
        "topic_retrieval_longchat": [{**exam(pred), "turn": turn} for turn, pred in enumerate(["A", "A", "B"])],
        "news_summ": [{"pred": "one two", "gt": "one two", "evaluation": "rouge"}] * 2,
    },
}


def scored(name: str) -> dict[str, Any]:
    keys = {"n_garbage": 9} if name == "passkey_retrieval" else {}
    return get_task(name).score(options(name, ori_max_position_embeddings=4096, max_pe=8192, **keys), LINES[name])


def percent(*marks: float) -> Score:
    """Computed by another way than `summarise`: by hand but for the bootstrap."""
    stderr = bootstrap_stderr([100 * mark for mark in marks])
    return Score(
        pytest.approx(100 * sum(marks) / len(marks), abs=0.005),
        None if stderr is None else pytest.approx(stderr, abs=1e-3),
        len(marks),
        interval_of_marks(marks),
    )


def share(*trials: float) -> Score:
    mean = sum(trials) / len(trials)
    return Score(
        mean, pytest.approx(math.sqrt(mean * (1 - mean) / len(trials))), len(trials), interval_of_marks(trials, 1)
    )


COLUMNS = {
    "needle": {"500": share(1, 1), "9000": share(1, 0)},
    "passkey_retrieval": {"accuracy": share(1, 0, 0, 0)},
    "ruler": {"vt 500": percent(0.5, 0), "vt 900": percent(1), "fwe 500": percent(1)},
    "pg19": {
        # Mean losses 2 and 1: exp of their mean, times the standard error of that. Student's t of one degree of freedom
        # is 12.7062; no perplexity is below 1.
        "1024": Score(
            pytest.approx(math.exp(1.5)),
            pytest.approx(0.5 * math.exp(1.5)),
            2,
            pytest.approx((1.0, math.exp(1.5 + 12.7062 * 0.5)), rel=1e-4),
        ),
        **{str(1024 * step): Score(pytest.approx(math.e), None, 1) for step in range(2, 11)},
    },
    "longbench": {"qasper": percent(1, 0, 0), "hotpotqa": percent(1, 0)},
    "longbench_e": {"qasper 0-4k": percent(1, 0), "qasper 4-8k": Score(None, None, 0), "qasper 8k+": percent(1)},
    "leval": {
        "tpo": percent(1, 0, 1, 1),
        "topic_retrieval_longchat": percent(1, 1, 0),
        "news_summ": percent(1, 1),
    },
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns(name: str) -> None:
    found = get_task(name).columns("result.json", scored(name))
    assert found == COLUMNS[name]
    assert list(found) == list(COLUMNS[name]), "lengths in numerical order, data sets in that of the file"


def test_columns_of_longer_prompts_have_their_own_errors_and_counts() -> None:
    task, results = get_task("longbench"), scored("longbench")
    assert task.result_files == ("result.json", "result_o.json", "result_t.json")
    assert task.columns("result_o.json", results) == {"qasper": percent(0), "hotpotqa": percent(1, 0)}
    assert task.columns("result_t.json", results) == {"qasper": percent(0), "hotpotqa": percent(1, 0)}
    ranges = get_task("longbench_e").columns("result_o.json", {"result_o.json": {"lcc": {"0-4k": 1.0, "8k+": None}}})
    assert ranges == {"lcc 0-4k": Score(1.0), "lcc 8k+": Score(None)}


def test_averages_over_columns() -> None:
    averages = {name: get_task(name).average(COLUMNS[name]) for name in ("pg19", "passkey_retrieval")}
    assert averages == {"pg19": None, "passkey_retrieval": None}
    scores = {"a": Score(10.0, 3.0, 5), "b": Score(None, None, 0), "c": Score(20.0, 4.0, 9)}
    for name in ("needle", "longbench", "longbench_e", "leval"):
        assert get_task(name).average(scores) == Score(15.0, 2.5, 2)
    needle = get_task("needle")
    mean = needle.average(needle.columns("result.json", scored("needle")))
    assert mean is not None
    assert (mean.score, mean.stderr, mean.count) == (0.75, pytest.approx(math.sqrt(0.125) / 2), 2)
    assert mean.interval is not None
    assert 0 < mean.interval[0] < 0.75 < mean.interval[1] < 1


EARLIER: dict[str, dict[str, Any]] = {
    "needle": {"by_length": {"500": {"score": 1.0, "standard_error": 0.0, "trials": 2}}, "overall": {}},
    "passkey_retrieval": {"score": 0.25, "standard_error": 0.2, "trials": 4},
    "pg19": {"steps": {"1024": {"perplexity": 4.5, "mean_of_books": 5.0, "standard_error_of_books": 1, "books": 2}}},
    "longbench": {"datasets": {"qasper": {"all": {"score": 33.3333, "stderr": 2.0, "records": 3}}}, "average": {}},
    "longbench_e": {"datasets": {"qasper": {"all": {"score": 5.0, "stderr": 2.0, "records": 3, "ranges": {}}}}},
    "leval": {"datasets": {"tpo": {"exact_match": 75.0, "LEval_score": 75.0, "stderr": 2.0}}, "average": {}},
}


@pytest.mark.parametrize("name", EARLIER)
def test_files_of_earlier_versions_and_of_other_programs_have_scores_alone(name: str) -> None:
    task, results = get_task(name), scored(name)
    wanted = {column: Score(score.score) for column, score in task.columns("result.json", results).items()}
    assert task.columns("result.json", {**results, "result_detail.json": EARLIER[name]}) == wanted
    assert task.columns("result.json", {"result.json": results["result.json"]}) == wanted
    assert task.columns("result.json", {}) == {}


def objects(content: Any) -> Iterator[Mapping[str, Any]]:
    """Every JSON object in a document."""
    if isinstance(content, Mapping):
        yield content
        for value in content.values():
            yield from objects(value)
    elif isinstance(content, Sequence) and not isinstance(content, str):
        for value in content:
            yield from objects(value)


@pytest.mark.parametrize("name", LINES)
def test_a_score_has_one_form_in_the_details_of_every_benchmark(name: str) -> None:
    found = list(objects(scored(name)["result_detail.json"]))
    scores = [item for item in found if {"score", "stderr", "count"} & item.keys()]
    assert scores
    for item in scores:
        assert set(item) == {"score", "stderr", "count", "interval"}
        assert isinstance(item["score"], float | None)
        assert isinstance(item["stderr"], float | None)
        assert isinstance(item["count"], int)
        if item["interval"] is not None:
            low, high = item["interval"]
            assert low <= item["score"] <= high
            assert low < high
    others = {key for item in found for key in item}
    assert not others & {"standard_error", "standard_error_of_books", "trials", "records", "books"}


@pytest.mark.parametrize("name", EARLIER)
def test_files_without_intervals_are_read(name: str) -> None:
    """What version 0.1 wrote: a score, its standard error and its count."""

    def without_intervals(content: Any) -> Any:
        if isinstance(content, Mapping):
            return {key: without_intervals(value) for key, value in content.items() if key != "interval"}
        return content

    task, results = get_task(name), scored(name)
    wanted = {
        column: dataclasses.replace(score, interval=None)
        for column, score in task.columns("result.json", results).items()
    }
    assert any(score.count for score in wanted.values())
    assert task.columns("result.json", without_intervals(results)) == wanted


def test_every_benchmark_says_how_it_is_tabled() -> None:
    tasks = [get_task(name) for name in task_names()]
    assert {task.name: (task.prefix, task.digits) for task in tasks} == {
        "needle": ("needle", 3), "passkey_retrieval": ("passkey", 3), "pg19": ("pg19", 2), "longbench": ("lb", 2),
        "longbench_e": ("lb_e", 2), "leval": ("le", 2), "ruler": ("ruler", 2),
    }  # fmt: skip
    assert len({task.label for task in tasks}) == len(tasks)
