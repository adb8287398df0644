import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import store
from pipeline.scoring import config_of_run, score_experiment
from pipeline.shapes import check_line
from tasks import get_task
from tasks.base import Line
from tasks.errors import UserError
from tasks.needle import NeedleOptions
from tests.pipeline.fake_task import FakeTask
from tests.pipeline.small import config, old_run_config


def experiment(folder: Path, lines: list[Line], expected: int = 2, limited: bool = False, **keys: object) -> Path:
    folder.mkdir(exist_ok=True)
    run = {
        "config": config(**keys).flat(),
        "window": 64,
        "versions": {},
        "datasets": {"one": {"records": expected, "limited": limited}},
    }
    store.write_json(folder / "run.json", run)
    (folder / "one.jsonl").write_text("".join(store.dump_line(line) for line in lines))
    return folder


GOOD: list[Line] = [{"id": "0", "pred": 3}, {"id": "1", "pred": 4}]


def test_results_and_detail_are_written(tmp_path: Path) -> None:
    progress = score_experiment(experiment(tmp_path, GOOD), FakeTask())
    assert progress.complete
    assert progress.describe() == ""
    assert json.loads((tmp_path / "result.json").read_text()) == {"one": 7.0}
    run = json.loads((tmp_path / "result_detail.json").read_text())["run"]
    assert (run["predicted"], run["expected"], run["failed"], run["window"]) == (2, 2, 0, 64)


def test_failed_records_are_left_out_and_counted(tmp_path: Path) -> None:
    progress = score_experiment(experiment(tmp_path, [GOOD[0], {"id": "1", "error": "OOM"}], expected=3), FakeTask())
    assert json.loads((tmp_path / "result.json").read_text()) == {"one": 3.0}
    assert progress.describe() == "incomplete 1/3, 1 failed"
    assert not progress.complete


def test_a_record_that_failed_and_then_succeeded_counts_once(tmp_path: Path) -> None:
    lines = [{"id": "0", "error": "OOM"}, GOOD[1], GOOD[0]]
    assert score_experiment(experiment(tmp_path, lines), FakeTask()).complete
    assert json.loads((tmp_path / "result.json").read_text()) == {"one": 7.0}


def test_the_task_sees_the_models_own_window(tmp_path: Path) -> None:
    class Window(FakeTask):
        def score(self, options: NeedleOptions | None, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
            assert options is not None
            return {"result.json": {"window": options.ori_max_position_embeddings}}

    score_experiment(experiment(tmp_path, GOOD), Window())
    assert json.loads((tmp_path / "result.json").read_text()) == {"window": 64}
    score_experiment(experiment(tmp_path, GOOD, ori_max_position_embeddings=32), Window())
    assert json.loads((tmp_path / "result.json").read_text()) == {"window": 32}


def test_a_run_record_of_version_01_is_read_without_other_benchmarks_keys() -> None:
    run = {"config": old_run_config(task="longbench", n_garbage=3), "window": 4096}
    cfg = config_of_run(run, get_task("longbench"), "run.json")
    assert cfg == config(task="longbench", ori_max_position_embeddings=4096)
    with pytest.raises(UserError, match=r"run\.json: unknown key 'unheard_of'"):
        config_of_run({"config": old_run_config(unheard_of=3), "window": 64}, get_task("needle"), "run.json")


def test_foreign_predictions_are_for_tasks_that_can_read_them(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"pred": 2}\n{"pred": 2}\n')
    with pytest.raises(UserError, match=r"no run\.json"):
        score_experiment(tmp_path, FakeTask())

    class Foreign(FakeTask):
        scores_foreign = True

    progress = score_experiment(tmp_path, Foreign())
    assert json.loads((tmp_path / "result.json").read_text()) == {"one": 4.0}
    assert progress.expected is None
    assert progress.describe() == ""


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "one.jsonl").write_text('{"id": "0", "pred": 3}\n{"id": "1", "pr'), "line 2"),
        (lambda folder: (folder / "one.jsonl").write_text('{"id": "0"}\n'), "lacks the field 'pred'"),
        (lambda folder: (folder / "one.jsonl").write_text(""), "no prediction files"),
        (lambda folder: (folder / "run.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "run.json").write_text("[]"), "no run record"),
    ],
)
def test_what_cannot_be_scored_leaves_the_old_result(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    folder = experiment(tmp_path, GOOD)
    score_experiment(folder, FakeTask())
    before = (folder / "result.json").read_bytes()
    spoil(folder)
    with pytest.raises(UserError, match=said):
        score_experiment(folder, FakeTask())
    assert (folder / "result.json").read_bytes() == before


def test_missing_experiment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        score_experiment(tmp_path / "none", FakeTask())


def test_an_experiment_of_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'pg19', not 'needle'"):
        score_experiment(experiment(tmp_path, GOOD, task="pg19"), FakeTask())


def test_a_bug_in_a_scorer_is_not_the_users_mistake(tmp_path: Path) -> None:
    class Buggy(FakeTask):
        def score(self, options: NeedleOptions | None, lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
            table: dict[str, float] = {}
            return {"result.json": {"one": table["forgotten"]}}

    with pytest.raises(KeyError, match="forgotten"):
        score_experiment(experiment(tmp_path, GOOD), Buggy())


def test_a_field_that_is_missing_is_named_with_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one\.jsonl' line 2 lacks the field 'pred', which needle scores"):
        score_experiment(experiment(tmp_path, [GOOD[0], {"id": "1"}]), FakeTask())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"id": "1", "pred": ["a"]}, r"pred.* = \['a'\]"),
        ({"id": "1", "pred": 1, "prefill_len": "3"}, "prefill_len = '3'"),
        ({"id": "1", "pred": 1, "final_len": -1}, "final_len = -1"),
        ({"id": "1", "pred": 1, "answers": 3}, "answers.* = 3"),
        ({"id": "1", "pred": 1, "loss_sums": {"a": "b"}}, r"loss_sums\.a = 'b'"),
        ({"id": "1", "pred": 1, "length": "9"}, "length.* = '9'"),
        ({"id": "1", "error": 3}, "error = 3"),
    ],
)
def test_a_line_of_another_shape_is_named_with_file_line_and_field(tmp_path: Path, line: Line, said: str) -> None:
    with pytest.raises(UserError, match=rf"one\.jsonl' line 2: {said}"):
        score_experiment(experiment(tmp_path, [GOOD[0], line]), FakeTask())


def test_what_is_mended_or_left_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines: list[Line] = [
        {"id": "0", "pred": 3, "error": None},
        {"id": "1", "pred": None},
        {"id": "2", "pred": 1, "answers": "Paris"},
        {"id": "0", "pred": 9},
        {"id": "3", "error": None},
    ]
    progress = score_experiment(experiment(tmp_path, lines, expected=4), FakeTask())
    assert (progress.predicted, progress.failed) == (2, 2)
    assert json.loads((tmp_path / "result.json").read_text()) == {"one": 4.0}
    for said in (
        "line 1: error is null; the line counts as predicted",
        "line 2: the prediction is null; the line counts as failed",
        "line 3: answers is a text, not a list",
        "line 5: error is null; the line counts as failed",
        "1 predictions repeat the id of an earlier one",
    ):
        assert said in caplog.text


def test_an_answer_that_is_a_text_is_scored_whole(tmp_path: Path) -> None:
    """Not letter by letter."""
    scores = []
    for answers in (["Paris"], "Paris"):
        line = {"pred": "Paris", "answers": answers, "all_classes": None}
        (tmp_path / "qasper.jsonl").write_text(json.dumps(line) + "\n")
        score_experiment(tmp_path, get_task("longbench"))
        scores.append(json.loads((tmp_path / "result.json").read_text()))
    assert scores == [{"qasper": 100.0}] * 2


@pytest.mark.parametrize(
    "field", ["loss_sum", "loss_sums", "scored_tokens", "context_length", "depth_percent", "length", "turn"]
)
def test_what_is_scored_is_not_null(field: str) -> None:
    check_line({"id": "a", "pred": "x"}, "here")
    with pytest.raises(UserError, match=rf"here: {field} = None: must be a"):
        check_line({"id": "a", field: None}, "here")


@pytest.mark.parametrize(
    ("dataset", "change", "said"),
    [
        ("sci_fi", {"gt": "True"}, "gt: reference 'True' must hold two answers"),
        ("tpo", {"gt": " "}, "gt: reference ' ' must begin with the letters"),
        ("tpo", {"gt": None}, "gt = None: must be a text"),
        ("coursera", {"gt": ["A", "B"]}, r"gt = \['A', 'B'\]: must be a text"),
        ("quality", {"m_pred": {"text": "A"}}, r"m_pred = {'text': 'A'}: must be a text"),
    ],
)
def test_a_foreign_line_that_no_metric_can_read_is_named_with_file_line_and_field(
    tmp_path: Path, dataset: str, change: dict[str, Any], said: str
) -> None:
    good = {"m_pred": "A [fact: true]", "gt": "A [fact: True]", "evaluation": "exam"}
    path = tmp_path / f"{dataset}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (good, {**good, **change})))
    with pytest.raises(UserError, match=rf"{dataset}\.jsonl' line 2: {said}"):
        score_experiment(tmp_path, get_task("leval"))
    assert not (tmp_path / "result.json").exists()


def test_a_foreign_line_without_its_reference_is_named_with_file_and_line(tmp_path: Path) -> None:
    line = {"m_pred": "A", "gt": "A", "evaluation": "exam"}
    (tmp_path / "tpo.jsonl").write_text(json.dumps(line) + '\n{"m_pred": "A", "evaluation": "exam"}\n')
    with pytest.raises(UserError, match=r"tpo\.jsonl' line 2: 'tpo': a prediction has no 'gt'"):
        score_experiment(tmp_path, get_task("leval"))
