import json
import math
import random
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.paired import difference
from tasks import get_task
from tasks.errors import UserError
from tasks.metrics.intervals import student_quantile
from tests.pipeline.scored import LONGBENCH, NEEDLE, PG19

QUESTION = {"answers": ["yes"], "all_classes": None, "length": 3000}


def predicted(root: Path, name: str, lines: Mapping[str, list[dict[str, Any]]], task: str = "longbench") -> Path:
    """An experiment's folder with a run record and these lines by data set."""
    folder = root / name
    folder.mkdir()
    config = {
        "model": "m", "exp_name": name, "method": "dpi", "params": {}, "task": task, "max_pe": 4096,
    }  # fmt: skip
    counts = {dataset: {"records": len(its), "limited": False} for dataset, its in lines.items()}
    (folder / "run.json").write_text(json.dumps({"config": config, "window": 512, "datasets": counts}))
    for dataset, its in lines.items():
        (folder / f"{dataset}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in its))
    return folder


def answers(marks: list[int]) -> list[dict[str, Any]]:
    """Predictions of which those with a 1 are right."""
    return [
        {"id": str(place), "pred": "yes" if mark else "no", "prefill_len": 9, "final_len": 10, **QUESTION}
        for place, mark in enumerate(marks)
    ]


def test_the_difference_is_that_of_paired_records(tmp_path: Path) -> None:
    rng = random.Random(3)
    mine = [int(rng.random() < 0.7) for _ in range(31)]
    theirs = [mark if rng.random() < 0.9 else 1 - mark for mark in mine]
    # A record that only one has, and a failed one, do not count; their order in the file does not matter either.
    more = [*reversed(answers(theirs)), {"id": "99", "pred": "yes", **QUESTION}, {"id": "98", "error": "no memory"}]
    found = difference(
        predicted(tmp_path, "a", {"hotpotqa": answers(mine)}),
        predicted(tmp_path, "b", {"hotpotqa": more}),
        LONGBENCH,
    )
    score = found.by_column["hotpotqa"]
    gaps = [100 * (a - b) for a, b in zip(mine, theirs, strict=True)]
    assert score.score == pytest.approx(statistics.fmean(gaps), abs=0.02)
    assert score.count == 31
    expected = statistics.stdev(gaps) / math.sqrt(31)
    assert score.stderr == pytest.approx(expected)
    assert score.interval is not None
    assert score.interval[1] - score.interval[0] == pytest.approx(2 * student_quantile(30) * score.stderr)
    apart = math.hypot(*(statistics.stdev([100 * m for m in marks]) / math.sqrt(31) for marks in (mine, theirs)))
    assert score.stderr < 0.8 * apart, "pairs tell more than two intervals beside each other"


def test_an_average_is_over_the_data_sets_that_both_have(tmp_path: Path) -> None:
    mine = {"hotpotqa": answers([1, 1, 0, 0]), "qasper": answers([1, 0, 1, 0]), "musique": answers([1, 1])}
    theirs = {"hotpotqa": answers([1, 0, 0, 0]), "qasper": answers([0, 0, 0, 0])}
    found = difference(predicted(tmp_path, "a", mine), predicted(tmp_path, "b", theirs), LONGBENCH)
    assert {name: score.score for name, score in found.by_column.items()} == {"hotpotqa": 25, "qasper": 50}
    assert found.average is not None
    assert (found.average.score, found.average.count) == (37.5, 2)


def test_records_that_differ_alike_have_no_interval(tmp_path: Path) -> None:
    found = difference(
        predicted(tmp_path, "a", {"hotpotqa": answers([1, 1, 1])}),
        predicted(tmp_path, "b", {"hotpotqa": answers([0, 0, 0])}),
        LONGBENCH,
    )
    score = found.by_column["hotpotqa"]
    assert (score.score, score.interval, score.stderr) == (100, None, None)


def test_a_perplexity_is_a_geometric_mean_of_books(tmp_path: Path) -> None:
    def books(losses: list[float]) -> dict[str, list[dict[str, Any]]]:
        return {
            "pg19": [
                {"id": str(i), "scored_tokens": 1023, "loss_sum": loss * 1023, "loss_sums": {"1024": loss * 1023}}
                for i, loss in enumerate(losses)
            ]
        }

    mine, theirs = [2.0, 2.5, 3.1, 2.2], [2.1, 2.7, 3.15, 2.4]
    found = difference(
        predicted(tmp_path, "a", books(mine), "pg19"), predicted(tmp_path, "b", books(theirs), "pg19"), PG19
    )
    score = found.by_column["1024"]
    gap = math.exp(statistics.fmean(mine)) - math.exp(statistics.fmean(theirs))
    assert score.score == pytest.approx(gap)
    assert score.interval is not None
    assert score.interval[1] < 0 < gap - 2 * score.interval[0]


def test_a_score_that_is_no_mean_over_records_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [predicted(tmp_path, name, {"hotpotqa": answers([1, 0, 1])}) for name in "ab"]
    usual = type(LONGBENCH).score

    def of_the_best(self: Any, options: Any, lines: Any) -> Any:
        documents = usual(self, options, lines)
        if len(lines["hotpotqa"]) > 1:
            documents["result.json"]["hotpotqa"] = 100.0
        return documents

    monkeypatch.setattr(type(LONGBENCH), "score", of_the_best)
    found = difference(folders[0], folders[1], LONGBENCH)
    assert found.by_column == {}
    assert found.left_out == ("hotpotqa",)


def test_what_cannot_be_paired_is_refused(tmp_path: Path) -> None:
    base = predicted(tmp_path, "base", {"hotpotqa": answers([1, 0])})
    other = [line | {"answers": ["no"]} for line in answers([1, 0])]
    with pytest.raises(UserError, match=r"record '0' of 'hotpotqa' has another answers \(\['no'\], \['yes'\]\); run"):
        difference(predicted(tmp_path, "other", {"hotpotqa": other}), base, LONGBENCH)
    with pytest.raises(UserError, match="no predicted record in common"):
        difference(predicted(tmp_path, "apart", {"qasper": answers([1])}), base, LONGBENCH)
    with pytest.raises(UserError, match="has no predictions"):
        difference(predicted(tmp_path, "empty", {}), base, LONGBENCH)
    without = [{key: value for key, value in line.items() if key != "id"} for line in answers([1])]
    with pytest.raises(UserError, match="lines without 'id'"):
        difference(predicted(tmp_path, "foreign", {"hotpotqa": without}), base, LONGBENCH)


def test_a_line_that_cannot_be_scored_is_named_with_file_and_field(tmp_path: Path) -> None:
    base = predicted(tmp_path, "base", {"hotpotqa": answers([1, 0, 1])})
    lines = answers([1, 0, 1])
    del lines[1]["answers"]
    bad = predicted(tmp_path, "bad", {"hotpotqa": lines})
    said = r"bad/hotpotqa\.jsonl' line 2: 'hotpotqa': a prediction has no 'answers'; restore the file"
    for pair in ((bad, base), (base, bad)):
        with pytest.raises(UserError, match=said):
            difference(*pair, LONGBENCH)
    books = [{"id": "0", "scored_tokens": 1023, "loss_sums": {"1024": 5.0}}, {"id": "1"}]
    folders = [predicted(tmp_path, name, {"pg19": books}, "pg19") for name in ("e", "f")]
    with pytest.raises(UserError, match=r"e/pg19\.jsonl' line \d lacks the field '\w+', which pg19 scores"):
        difference(folders[0], folders[1], PG19)
    quiz = {"id": "0", "gt": "A", "evaluation": "exam"}
    folders = [predicted(tmp_path, name, {"coursera": [quiz]}, "leval") for name in ("c", "d")]
    with pytest.raises(UserError, match=r"c/coursera\.jsonl' line 1: 'coursera': predictions have neither 'pred'"):
        difference(folders[0], folders[1], get_task("leval"))


def test_a_run_record_is_needed_where_scores_need_one(tmp_path: Path) -> None:
    base = predicted(tmp_path, "base", {"pg19": [{"id": "0"}]}, "pg19")
    (base / "run.json").unlink()
    with pytest.raises(UserError, match=r"has no run\.json, which pg19 needs"):
        difference(predicted(tmp_path, "a", {"pg19": [{"id": "0"}]}, "pg19"), base, PG19)
    other = predicted(tmp_path, "other", {"hotpotqa": answers([1, 0])}, "needle")
    with pytest.raises(UserError, match="is an experiment of task 'needle', not 'longbench'"):
        difference(predicted(tmp_path, "b", {"hotpotqa": answers([1, 0])}), other, LONGBENCH)


def test_needles_are_paired_by_length(tmp_path: Path) -> None:
    def lines(marks: list[int]) -> dict[str, list[dict[str, Any]]]:
        return {
            "needle": [
                {"id": str(i), "context_length": 500, "depth_percent": 50.0, "answer": "7", "pred": str(7 * mark)}
                for i, mark in enumerate(marks)
            ]
        }

    found = difference(
        predicted(tmp_path, "a", lines([1, 1, 0, 1]), "needle"),
        predicted(tmp_path, "b", lines([0, 1, 0, 0]), "needle"),
        NEEDLE,
    )
    assert found.by_column["500"].score == 0.5
