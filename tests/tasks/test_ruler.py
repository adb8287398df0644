"""RULER as a benchmark: records, prompts with room for their answers, lines, scores, and a run on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import collect_results
import eval as eval_script
import pred
from tasks import get_task
from tasks.errors import UserError
from tasks.ruler import DATASETS, RulerOptions, share_of_answers
from tests.tasks.fakes import FakeEngine, byte_tokenizer

TASK = get_task("ruler")


def ruler_options(**keys: object) -> RulerOptions:
    return RulerOptions.model_validate({"max_pe": 6000, **keys})


def test_records_are_samples_of_each_length_at_even_depths() -> None:
    records = list(TASK.records(ruler_options(sequence_lengths=[5000, 4000, 5000], samples=3), "vt"))
    assert [record["context_length"] for record in records] == [4000] * 3 + [5000] * 3
    assert [record["depth_percent"] for record in records] == [0, 50, 100] * 2
    assert len({record["id"] for record in records}) == 6
    (only,) = TASK.records(ruler_options(samples=1), "vt")
    assert (only["context_length"], only["depth_percent"]) == (6000, 50)


def test_a_length_beyond_the_target_is_refused() -> None:
    with pytest.raises(UserError, match="sequence_lengths: 7000 is beyond max_pe = 6000"):
        list(TASK.records(ruler_options(sequence_lengths=[7000]), "vt"))


@pytest.mark.parametrize("dataset", DATASETS)
def test_prompt_and_answer_fill_the_length(dataset: str) -> None:
    engine = FakeEngine(byte_tokenizer(), lambda prompt: prompt[-10:])
    options = ruler_options(samples=2)
    for record in TASK.records(options, dataset):
        line = TASK.predict(engine, options, dataset, record)
        call = engine.calls[-1]
        assert len(call.ids) + call.max_new_tokens == 6000
        assert line["prefill_len"] == len(call.ids)
        assert call.ids == TASK.prompt(options, dataset, record, engine.tokenizer)
        assert all(answer in call.prompt for answer in line["answers"])


def test_a_record_scores_the_share_of_its_answers() -> None:
    assert share_of_answers({"answers": ["AB", "CD", "EF"], "pred": "first ab, then Ef"}) == pytest.approx(2 / 3)


def test_a_run_on_the_tiny_model(tmp_path: Path) -> None:
    settings = {
        "model": "tiny", "exp_name": "x", "method": "dpi", "task": "ruler", "max_pe": 1100, "samples": 2,
        "ori_max_position_embeddings": 512, "max_new_tokens": 6, "device": "cpu", "tasks": ["vt", "niah_single_1"],
    }  # fmt: skip
    cfg = tmp_path / "ruler.toml"
    cfg.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items()), encoding="utf-8")
    results = ["--results", str(tmp_path)]
    assert pred.main(["--cfg", str(cfg), "--set", "params.chunk_coe=1", *results]) == 0
    assert eval_script.main(["--task", "ruler", "--exp", "x", *results]) == 0
    assert collect_results.main(["--task", "ruler", "--exp", "all", *results]) == 0
    found = json.loads((tmp_path / "ruler/pred/x/result.json").read_text(encoding="utf-8"))
    assert {dataset: list(scores) for dataset, scores in found.items()} == {"niah_single_1": ["1100"], "vt": ["1100"]}
    assert (tmp_path / "ruler/pred/ruler.png").is_file()
