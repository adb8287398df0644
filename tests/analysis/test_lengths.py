"""Lengths are of whole prompts, one per document, and drawn by data set and tokenizer."""

import json
from pathlib import Path

import pandas as pd

from analysis.lengths import COLUMNS, draw, input_lengths, joined
from tasks import get_task
from tasks.longbench import official_prompt
from tests.pipeline.small import word_tokenizer


def test_lengths_are_those_of_whole_prompts(tmp_path: Path) -> None:
    record = {"input": "What is the pass key?", "context": "The grass is green. " * 300, "answers": [], "length": 1}
    (tmp_path / "qasper.jsonl").write_text("".join(json.dumps(record) + "\n" for _ in range(3)))
    tokenizer = word_tokenizer()
    table, missing = input_lengths("longbench", tmp_path, {"words": tokenizer}, records=2)
    expected = len(tokenizer(official_prompt("qasper", record))["input_ids"])
    assert table["tokens"].tolist() == [expected] * 2
    assert expected > 1500
    assert set(table["dataset"]) == {"qasper"}
    assert len(missing) == 20
    assert "qasper" not in missing
    nothing, missing = input_lengths("leval", tmp_path / "absent", {"words": tokenizer}, records=2)
    assert nothing.empty
    assert len(missing) == 20
    assert len(joined([nothing, table])) == 2
    assert joined([nothing]).empty


def test_leval_counts_a_document_once(tmp_path: Path) -> None:
    row = {"input": "green " * 40, "instructions": ["Why?", "How?"], "outputs": ["a", "b"], "evaluation": "exam"}
    (tmp_path / "tpo.jsonl").write_text(json.dumps(row) + "\n")
    table, _ = input_lengths("leval", tmp_path, {"words": word_tokenizer()}, records=5)
    assert len(table) == 1
    assert table["tokens"].item() > 40


def test_every_benchmark_is_measured_by_its_name(tmp_path: Path) -> None:
    record = {"input": "", "context": "The grass is green. " * 20, "answers": [], "length": 1, "all_classes": None}
    (tmp_path / "multi_news_e.jsonl").write_text(json.dumps(record) + "\n")
    tokenizer = word_tokenizer()
    table, missing = input_lengths("longbench_e", tmp_path, {"words": tokenizer}, records=2)
    assert table["tokens"].tolist() == [len(tokenizer(official_prompt("multi_news", record))["input_ids"])]
    assert len(missing) == len(get_task("longbench_e").known_datasets()) - 1
    nothing, missing = input_lengths("pg19", tmp_path, {"words": tokenizer}, records=2)
    assert nothing.empty
    assert missing == ["pg19"]


def test_a_box_spans_the_quartiles_of_a_data_set() -> None:
    tokens = [1000, 2000, 3000, 4000, 5000]
    rows = [("longbench", "short", "words", 10), *(("longbench", "long", "words", count) for count in tokens)]
    figure = draw(pd.DataFrame(rows, columns=COLUMNS), (4096,))
    (axis,) = figure.axes
    assert axis.get_title() == "LongBench"
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["short (1)", "long (5)"]
    box = axis.patches[1].get_path().get_extents()
    assert (box.x0, box.x1) == (2000, 4000)
