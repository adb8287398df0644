import hashlib
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tasks import get_task, longbench, longbench_e
from tasks.base import Line, Record
from tasks.errors import BadFieldError, UserError
from tasks.longbench import MAX_NEW_TOKENS, NO_CHAT_TEMPLATE, PROMPTS, cut_middle, official_prompt
from tests.tasks.fakes import LLAMA2_TEMPLATE, PLAIN_TEMPLATE, FakeEngine, byte_tokenizer, interval_of_marks, options

TASK = get_task("longbench")
TASK_E = get_task("longbench_e")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def predictions(folder: Path) -> dict[str, list[Line]]:
    return {path.stem: read(path) for path in sorted(folder.glob("*.jsonl"))}


def row(**fields: object) -> Record:
    return {"input": "Who?", "context": "Ann did. ", "answers": ["Ann"], "length": 2, "all_classes": None, **fields}


def write(folder: Path, name: str, *rows: Record) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")


def line(pred: str = "Ann", **fields: object) -> Line:
    return {"pred": pred, "answers": ["Ann"], "all_classes": None, "length": 2, **fields}


def test_published_scores(shared_data: Path) -> None:
    folder = shared_data / "predictions" / "longbench" / "llama2-7b-chat-4k"
    published = json.loads((folder / "result.json").read_text())
    documents = TASK.score(None, predictions(folder))
    assert len(published) == 21
    assert documents["result.json"] == published
    assert set(documents) == {"result.json", "result_detail.json"}


def test_published_scores_of_longbench_e(shared_data: Path) -> None:
    folder = shared_data / "predictions" / "longbench_e" / "llama2-7b-chat-4k-original"
    published = json.loads((folder / "result.json").read_text())
    documents = TASK_E.score(None, predictions(folder))
    assert sum(map(len, published.values())) == 13 * 3
    assert documents["result.json"] == published


def test_every_subset_records_prompt_is_the_template_filled(shared_data: Path) -> None:
    count = 0
    for dataset in PROMPTS:
        for record in read(shared_data / "longbench" / "subset" / f"{dataset}.jsonl"):
            before, _, rest = PROMPTS[dataset].partition("{context}")
            between, has_input, after = rest.partition("{input}")
            wanted = before + record["context"] + between + (record["input"] + after if has_input else "")
            assert official_prompt(dataset, record) == wanted
            count += 1
    assert count == 237


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("dataset2prompt.json", "bb89f011861ff65f8534f366632b99cc9d5681ae983c50f2537230faae16613f"),
        ("dataset2maxlen.json", "39a79d9491ead3dc8bcea6dbd8b963b29248eb4c344dde1e176b0a58b4e758a9"),
    ],
)
def test_published_files_are_unchanged(name: str, sha256: str) -> None:
    content = json.loads((longbench._DATA / name).read_text(encoding="utf-8"))
    assert hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() == sha256


def test_data_sets() -> None:
    assert len(TASK.datasets()) == 16
    assert not set(TASK.datasets()) & {"multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"}
    assert len(TASK.known_datasets()) == 21
    assert TASK_E.datasets() == TASK_E.known_datasets()
    assert len(TASK_E.datasets()) == 13
    assert list(MAX_NEW_TOKENS) == list(PROMPTS)


def test_the_whole_text_is_the_uncut_prompt() -> None:
    long = row(context="x" * 5000)
    assert TASK.whole_text("qasper", long) == TASK_E.whole_text("qasper", long) == official_prompt("qasper", long)


def test_braces_in_a_record_stay() -> None:
    assert official_prompt("lcc", row(context="{input} {0} {{x}}")).count("{input} {0} {{x}}") == 1


@pytest.mark.parametrize("limit", [10, 11])
def test_the_middle_is_cut_to_two_equal_halves(limit: int) -> None:
    tokenizer = byte_tokenizer()
    # The start token is one of the first half and is not decoded.
    assert cut_middle("abcdefghijkl", tokenizer, limit) == ("abcdhijkl", 13, 10)
    assert cut_middle("abcdefghi", tokenizer, limit) == ("abcdefghi", 10, 10)


def test_prompt_room_is_the_target_less_generation_less_fifty() -> None:
    opts = options("longbench", max_pe=1000)
    tokenizer = byte_tokenizer(PLAIN_TEMPLATE)
    record = row(context="x" * 5000, id="0")
    room = 1000 - 64 - 50
    ids = TASK.prompt(opts, "lcc", record, tokenizer)
    assert len(ids) == 1 + 2 * (room // 2) - 1  # a new start token for the one that was not decoded
    with pytest.raises(UserError, match=r"max_pe = 560 .*'qmsum'; it needs 564"):
        TASK.prompt(options("longbench", max_pe=560), "qmsum", record, tokenizer)


@pytest.mark.parametrize("dataset", PROMPTS)
def test_chat_template_except_for_six_tasks(dataset: str) -> None:
    tokenizer = byte_tokenizer(PLAIN_TEMPLATE)
    text = official_prompt(dataset, row())
    prompt = tokenizer.decode(TASK.prompt(options("longbench"), dataset, row(), tokenizer))
    if dataset in {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}:
        assert prompt == "<s>" + text
    else:
        assert prompt == f"<user>{text}</><assistant>"
    assert (dataset in NO_CHAT_TEMPLATE) == (prompt == "<s>" + text)


def test_llama2_form_and_system_prompt() -> None:
    text = official_prompt("qasper", row())
    llama2, plain = byte_tokenizer(LLAMA2_TEMPLATE), byte_tokenizer(PLAIN_TEMPLATE)
    assert llama2.decode(TASK.prompt(options("longbench"), "qasper", row(), llama2)) == f"<s>[INST]{text}[/INST]"
    opts = options("longbench", system_prompt="Be brief.")
    with_system = plain.decode(TASK.prompt(opts, "qasper", row(), plain))
    assert with_system == f"<system>Be brief.</><user>{text}</><assistant>"
    assert plain.decode(TASK.prompt(opts, "lcc", row(), plain)) == "<s>" + official_prompt("lcc", row())
    without = plain.decode(TASK.prompt(options("longbench", chat="none"), "qasper", row(), plain))
    assert without == "<s>" + text


def test_records_keep_their_order_and_get_unique_ids(tmp_path: Path) -> None:
    write(tmp_path / "data", "qasper.jsonl", row(_id="x", input="1"), row(_id="x", input="2"), row(input="3"))
    found = list(TASK.records(options("longbench", data_dir=tmp_path), "qasper"))
    assert [record["input"] for record in found] == ["1", "2", "3"]
    assert [record["id"] for record in found] == ["0000-x", "0001-x", "0002"]


def test_broken_data_are_named(tmp_path: Path) -> None:
    opts = options("longbench", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"data_dir has no 'qasper\.jsonl'"):
        list(TASK.records(opts, "qasper"))
    (tmp_path / "qasper.jsonl").write_text(json.dumps(row()) + "\n{\n")
    with pytest.raises(UserError, match="line 2 is not valid JSON"):
        list(TASK.records(opts, "qasper"))
    (tmp_path / "qasper.jsonl").write_text('\n{"input": "", "context": ""}\n')
    with pytest.raises(UserError, match="line 2 has no 'answers', 'length'"):
        list(TASK.records(opts, "qasper"))
    with pytest.raises(UserError, match=r"no 'qasper_e\.jsonl'"):
        list(TASK_E.records(opts, "qasper"))


def test_records_from_the_hubs_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/qasper.jsonl", json.dumps(row(input="plain")))
        archive.writestr("data/qasper_e.jsonl", json.dumps(row(input="even")) + "\n")
    monkeypatch.setattr(longbench, "hub_file", lambda repository, name, options: tmp_path / name)
    assert [record["input"] for record in TASK.records(options("longbench"), "qasper")] == ["plain"]
    assert [record["input"] for record in TASK_E.records(options("longbench_e"), "qasper")] == ["even"]
    with pytest.raises(UserError, match=r"holds no 'lcc\.jsonl'"):
        list(TASK.records(options("longbench"), "lcc"))


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.hub.silence", lambda: "the hub is gone")
    said = r"'THUDM/LongBench'.*the hub is gone, and the cache does not have it; set data_dir"
    with pytest.raises(UserError, match=said):
        list(TASK.records(options("longbench", data_revision="0" * 40), "qasper"))
    with pytest.raises(UserError, match=said):
        TASK.data_source(options("longbench", data_revision="no-such-branch"))
    assert TASK.data_source(options("longbench", data_dir="x")) is None


def test_predict_fills_the_published_fields_and_stops_samsum_at_newlines() -> None:
    tokenizer = byte_tokenizer(PLAIN_TEMPLATE)
    engine, opts = FakeEngine(tokenizer, lambda prompt: "Ann."), options("longbench", max_pe=300)
    record = row(context="x" * 400, all_classes=["A"], id="0")
    samsum = TASK.predict(engine, opts, "samsum", record)
    hotpot = TASK.predict(engine, opts, "hotpotqa", record)
    newline = tokenizer.encode("\n", add_special_tokens=False)
    assert engine.calls[0].stop_token_ids == tuple(newline)
    assert [call.min_new_tokens for call in engine.calls] == [1, 0]
    assert [call.max_new_tokens for call in engine.calls] == [128, 32]
    assert engine.calls[1].stop_token_ids == ()
    text = official_prompt("hotpotqa", record)
    kept = 2 * ((300 - 32 - 50) // 2) - 1
    around = len("<user></><assistant>")
    assert hotpot == {
        "pred": "Ann.",
        "answers": ["Ann"],
        "all_classes": ["A"],
        "length": 2,
        "prefill_len": kept + around,
        "final_len": kept + around + 4,
        "prompt_len": len(text) + around,
    }
    assert samsum["prompt_len"] == len(official_prompt("samsum", record)) + 1
    TASK.predict(engine, options("longbench", max_pe=300, max_new_tokens=7), "hotpotqa", record)
    assert engine.calls[-1].max_new_tokens == 7


def test_predictions_of_a_few_records_score_as_they_should(tmp_path: Path) -> None:
    write(tmp_path, "hotpotqa.jsonl", row(), row(answers=["Bob", "Robert Roe"]), row(answers=["Cy"]))
    write(tmp_path, "trec.jsonl", row(answers=["City"], all_classes=["City", "State"]))
    write(tmp_path, "lcc.jsonl", row(answers=["x = 1"]))
    opts = options("longbench", data_dir=tmp_path)
    said = {"hotpotqa": "Ann or Robert", "trec": "\nCity\nState", "lcc": "# note\nx = 1\n"}
    lines = {}
    for dataset, answer in said.items():
        engine = FakeEngine(byte_tokenizer(), lambda prompt, answer=answer: answer)
        lines[dataset] = [TASK.predict(engine, opts, dataset, record) for record in TASK.records(opts, dataset)]
    result = TASK.score(opts, lines)["result.json"]
    # hotpotqa: F1 of Ann, 2 · (1/3) · 1 / (4/3) = 1/2; of Robert Roe, 2 · (1/3) · (1/2) / (5/6) = 2/5; and 0.
    assert result == {"hotpotqa": 30.0, "trec": 100.0, "lcc": 100.0}


def test_every_task_of_the_subset_end_to_end(shared_data: Path) -> None:
    opts = options("longbench", data_dir=shared_data / "longbench" / "subset", max_pe=20000)
    tokenizer = byte_tokenizer(PLAIN_TEMPLATE)
    lines: dict[str, list[Line]] = {}
    for dataset in TASK.known_datasets():
        lines[dataset] = []
        for record in list(TASK.records(opts, dataset))[:2]:
            engine = FakeEngine(tokenizer, lambda prompt, record=record: record["answers"][0])
            lines[dataset].append(TASK.predict(engine, opts, dataset, record))
            assert engine.calls[0].max_new_tokens == MAX_NEW_TOKENS[dataset]
            assert lines[dataset][-1]["prefill_len"] <= 20000
    documents = TASK.score(opts, lines)
    assert documents["result.json"] == dict.fromkeys(PROMPTS, 100.0)


def test_results_by_length_of_the_prompt() -> None:
    opts = options("longbench", max_pe=200, ori_max_position_embeddings=100)
    lines = {
        "qasper": [line("no", prompt_len=100), line("Ann", prompt_len=101), line("no", prompt_len=200)],
        "hotpotqa": [line("Ann", prompt_len=201), line("no", prompt_len=999)],
        "musique": [line("Ann", prompt_len=50)],
        "2wikimqa": [line("Ann", prefill_len=150)],  # written by another program
    }
    documents = TASK.score(opts, lines)
    assert documents["result.json"] == {"qasper": 33.33, "hotpotqa": 50.0, "musique": 100.0, "2wikimqa": 100.0}
    assert documents["result_o.json"] == {"qasper": 50.0, "hotpotqa": 50.0, "2wikimqa": 100.0}
    assert documents["result_t.json"] == {"hotpotqa": 50.0}
    detail = documents["result_detail.json"]
    assert detail["datasets"]["hotpotqa"]["longer_than_target"]["count"] == 2
    assert detail["average"]["longer_than_window"]["score"] == pytest.approx(200 / 3, abs=1e-4)
    assert detail["average"]["all"]["count"] == 4


def test_standard_errors(shared_data: Path) -> None:
    folder = shared_data / "predictions" / "longbench" / "llama2-7b-chat-4k"
    lines = read(folder / "trec.jsonl")
    summary = TASK.score(None, {"trec": lines})["result_detail.json"]["datasets"]["trec"]["all"]
    share = summary["score"] / 100  # nearly all scores are 0 or 1
    assert summary["score"] == 64.5
    assert summary["stderr"] == pytest.approx(100 * math.sqrt(share * (1 - share) / len(lines)), rel=0.1)


def test_foreign_lines_that_cannot_be_scored_are_named() -> None:
    with pytest.raises(UserError, match="'nope' is no data set of longbench"):
        TASK.score(None, {"nope": [line()]})
    with pytest.raises(UserError, match="'narrativeqa' is no data set of longbench_e"):
        TASK_E.score(None, {"narrativeqa": [line()]})
    with pytest.raises(UserError, match="'trec': a prediction has no 'all_classes', 'answers'") as error:
        TASK.score(None, {"trec": [line(all_classes=["A"]), {"pred": ""}]})
    assert isinstance(error.value, BadFieldError)
    assert error.value.line == {"pred": ""}
    with pytest.raises(UserError, match="'lcc': a prediction has no 'length'"):
        TASK_E.score(None, {"lcc": [{"pred": "", "answers": []}]})
    assert TASK.score(None, {"lcc": [{"pred": "", "answers": ["x"]}]})["result.json"] == {"lcc": 0.0}


def test_ranges_of_longbench_e() -> None:
    assert [longbench_e.bucket(length) for length in (0, 3999, 4000, 7999, 8000)] == [
        "0-4k",
        "0-4k",
        "4-8k",
        "4-8k",
        "8k+",
    ]
    documents = TASK_E.score(None, {"qasper": [line(length=10), line("no", length=10), line(length=9000)]})
    assert documents["result.json"] == {"qasper": {"0-4k": 50.0, "4-8k": None, "8k+": 100.0}}
    detail = documents["result_detail.json"]
    whole = detail["datasets"]["qasper"]["all"]
    assert whole["score"] == pytest.approx(200 / 3, abs=1e-4)
    ranges = detail["ranges"]["qasper"]["all"]
    assert ranges["0-4k"]["count"] == 2
    assert ranges["4-8k"] == {"score": None, "stderr": None, "count": 0, "interval": None}
    assert ranges["8k+"] == {"score": 100.0, "stderr": None, "count": 1, "interval": interval_of_marks([1.0])}


@pytest.mark.parametrize(
    ("dataset", "field", "value"),
    [("qasper", "pred", 3), ("qasper", "answers", None), ("trec", "all_classes", None)],
)
def test_a_field_of_another_kind_is_named(dataset: str, field: str, value: object) -> None:
    made: Line = {"pred": "x", "answers": ["x"], "all_classes": ["x"], "prefill_len": 1, field: value}
    with pytest.raises(UserError, match=rf"'{dataset}': {field} = {value} is no (str|list)"):
        TASK.score(None, {dataset: [made]})
