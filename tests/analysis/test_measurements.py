"""Differences, parameters, lengths, texts and trends, on numbers that can be checked by hand."""

import json
import math
from pathlib import Path

import pytest
import torch

from analysis.differences import by_distance, distance_groups
from analysis.lengths import input_lengths, joined
from analysis.runs import chunk_settings, group_settings, local_window_settings
from analysis.study import paper_methods, study_of
from analysis.texts import long_texts
from analysis.trends import collect_trends
from models.DPI.methods import METHODS, build_method
from pipeline import store
from tasks import get_task
from tasks.longbench import official_prompt
from tests.pipeline.small import word_tokenizer


def test_groups_cover_every_distance_once() -> None:
    assert distance_groups(19, 8) == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 19)]


def test_differences_by_hand() -> None:
    original = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.25, 0.25, 0.5]])
    method = torch.tensor([[1.0, 0, 0], [0.05, 0.95, 0], [0.25, 0.5, 0.25]])
    table = by_distance(original, {"dpi": method}, [(0, 1), (1, 3)])
    assert table["absolute"].tolist() == pytest.approx([(0.45 + 0.25) / 2.0, (0.45 + 0.25 + 0) / 1.0])
    # Ratios of the second group: 0.1, 2 and 1.
    assert table["q50"].tolist()[1] == pytest.approx(0)
    assert table["q5"].tolist()[1] == pytest.approx(-1)
    assert table["q95"].tolist()[1] == pytest.approx(math.log10(2))


@pytest.mark.parametrize("window", [64, 512, 4096, 8192])
@pytest.mark.parametrize("target", [1.0, 1.5, 4.0, 7.3])
def test_every_setting_is_valid_and_reaches_its_target(window: int, target: float) -> None:
    length = int(target * window)
    methods = paper_methods(window, length)
    assert set(methods) == set(METHODS)
    chosen = list(methods.items())
    if target > 1:
        settings = local_window_settings(window) + chunk_settings(window) + group_settings(window, length)
        chosen += [(method, params) for method, _, _, params in settings]
    for name, params in chosen:
        build_method(name, params, window, length)


def test_a_short_study_still_leaves_the_window() -> None:
    for model in ("tiny", "smollm2-135m"):
        for short in (False, True):
            study = study_of(model, short)
            assert study.window < study.maps <= study.longest
            assert max(study.needles) < study.longest


def test_lengths_are_those_of_whole_prompts(tmp_path: Path) -> None:
    record = {"input": "What is the pass key?", "context": "The grass is green. " * 300, "answers": [], "length": 1}
    (tmp_path / "qasper.jsonl").write_text("".join(json.dumps(record) + "\n" for _ in range(3)))
    tokenizer = word_tokenizer()
    table, missing = input_lengths("longbench", tmp_path, {"words": tokenizer}, records=2)
    expected = len(tokenizer(official_prompt("qasper", record))["input_ids"])
    assert table["tokens"].tolist() == [expected] * 2 and expected > 1500
    assert set(table["dataset"]) == {"qasper"}
    assert len(missing) == 20 and "qasper" not in missing
    nothing, missing = input_lengths("leval", tmp_path / "absent", {"words": tokenizer}, records=2)
    assert nothing.empty and len(missing) == 20
    assert len(joined([nothing, table])) == 2 and joined([nothing]).empty


def test_leval_counts_a_document_once(tmp_path: Path) -> None:
    row = {"input": "green " * 40, "instructions": ["Why?", "How?"], "outputs": ["a", "b"], "evaluation": "exam"}
    (tmp_path / "tpo.jsonl").write_text(json.dumps(row) + "\n")
    table, _ = input_lengths("leval", tmp_path, {"words": word_tokenizer()}, records=5)
    assert len(table) == 1 and table["tokens"].item() > 40


def test_texts_of_a_folder_and_without_one(tmp_path: Path) -> None:
    for name, text in (("b.txt", "second"), ("a.txt", "first"), ("c.md", "no")):
        (tmp_path / name).write_text(text)
    texts, origin = long_texts(tmp_path)
    assert texts == ["first", "second"]
    assert str(tmp_path) not in origin  # where data lie is nobody's business
    (text,), origin = long_texts(tmp_path / "absent")
    assert len(text) > 200_000 and "Python" in origin
    assert "\n*****" not in text


def test_trends_take_what_is_scored(tmp_path: Path) -> None:
    def experiment(name: str, target: int, scores: dict[str, float] | None, expected: int = 1) -> None:
        folder = tmp_path / get_task("longbench").folder / name
        folder.mkdir(parents=True)
        config = {"task": "longbench", "method": "dpi", "model": "some/model", "max_pe": target, "params": {}}
        datasets = {"d": {"records": expected, "limited": False}}
        store.write_json(folder / "run.json", {"config": config, "window": 8, "datasets": datasets})
        (folder / "d.jsonl").write_text('{"id": "0"}\n')
        if scores:
            store.write_json(folder / "result.json", scores)

    experiment("b-32k", 32768, {"lcc": 30.0, "trec": 50.0})
    experiment("a-16k", 16384, {"lcc": 20.0}, expected=7)
    experiment("c-64k", 65536, None)
    found = collect_trends(tmp_path, "longbench")
    assert found[["target", "score", "datasets", "complete"]].values.tolist() == [
        [16384, 20, 1, False],
        [32768, 40, 2, True],
    ]
    assert set(found["model"]) == {"model"}
    assert collect_trends(tmp_path, "leval").empty
