import json

import pytest

from pipeline import store
from pipeline.scoring import score_experiment
from tasks.errors import UserError
from tests.pipeline.fake_task import FakeTask
from tests.pipeline.small import config


def experiment(folder, lines, expected=2, limited=False, **keys):
    folder.mkdir(exist_ok=True)
    run = {
        "config": config(**keys).model_dump(mode="json"),
        "window": 64,
        "versions": {},
        "datasets": {"one": {"records": expected, "limited": limited}},
    }
    store.write_json(folder / "run.json", run)
    (folder / "one.jsonl").write_text("".join(store.dump_line(line) for line in lines))
    return folder


GOOD = [{"id": "0", "pred": 3}, {"id": "1", "pred": 4}]


def test_results_and_detail_are_written(tmp_path):
    progress = score_experiment(experiment(tmp_path, GOOD), FakeTask())
    assert progress.complete and progress.describe() == ""
    assert json.loads((tmp_path / "result.json").read_text()) == {"one": 7.0}
    run = json.loads((tmp_path / "result_detail.json").read_text())["run"]
    assert (run["predicted"], run["expected"], run["failed"], run["window"]) == (2, 2, 0, 64)


def test_failed_records_are_left_out_and_counted(tmp_path):
    progress = score_experiment(experiment(tmp_path, [GOOD[0], {"id": "1", "error": "OOM"}], expected=3), FakeTask())
    assert json.loads((tmp_path / "result.json").read_text()) == {"one": 3.0}
    assert progress.describe() == "incomplete 1/3, 1 failed"
    assert not progress.complete


def test_a_record_that_failed_and_then_succeeded_counts_once(tmp_path):
    lines = [{"id": "0", "error": "OOM"}, GOOD[1], GOOD[0]]
    assert score_experiment(experiment(tmp_path, lines), FakeTask()).complete
    assert json.loads((tmp_path / "result.json").read_text()) == {"one": 7.0}


def test_the_task_sees_the_models_own_window(tmp_path):
    class Window(FakeTask):
        def score(self, cfg, lines):
            return {"result.json": {"window": cfg.ori_max_position_embeddings}}

    score_experiment(experiment(tmp_path, GOOD), Window())
    assert json.loads((tmp_path / "result.json").read_text()) == {"window": 64}
    score_experiment(experiment(tmp_path, GOOD, ori_max_position_embeddings=32), Window())
    assert json.loads((tmp_path / "result.json").read_text()) == {"window": 32}


def test_foreign_predictions_are_for_tasks_that_can_read_them(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"pred": 2}\n{"pred": 2}\n')
    with pytest.raises(UserError, match=r"no run\.json"):
        score_experiment(tmp_path, FakeTask())
    task = FakeTask()
    task.scores_foreign = True
    progress = score_experiment(tmp_path, task)
    assert json.loads((tmp_path / "result.json").read_text()) == {"one": 4.0}
    assert progress.expected is None and progress.describe() == ""


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
def test_what_cannot_be_scored_leaves_the_old_result(tmp_path, spoil, said):
    folder = experiment(tmp_path, GOOD)
    score_experiment(folder, FakeTask())
    before = (folder / "result.json").read_bytes()
    spoil(folder)
    with pytest.raises(UserError, match=said):
        score_experiment(folder, FakeTask())
    assert (folder / "result.json").read_bytes() == before


def test_missing_experiment(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        score_experiment(tmp_path / "none", FakeTask())


def test_an_experiment_of_another_task_is_refused(tmp_path):
    with pytest.raises(UserError, match="'pg19', not 'needle'"):
        score_experiment(experiment(tmp_path, GOOD, task="pg19"), FakeTask())
