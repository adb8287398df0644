import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tasks import get_task, leval
from tasks.base import Line, Record
from tasks.errors import UserError
from tasks.leval import CLOSED_ENDED, OPEN_ENDED, build_prompt, fact_probe, fit_document
from tasks.metrics.bootstrap import bootstrap_stderr
from tests.tasks.fakes import LLAMA2_TEMPLATE, PLAIN_TEMPLATE, FakeEngine, byte_tokenizer, interval_of_marks, options

TASK = get_task("leval")
SINGLE = (
    "Now you are given a very long document. Please follow the instruction based on this document. For multi-choice"
    " questions, there is only a sinlge correct option. Please only provide the letter corresponding to the answer"
    " (like A or B) when answering. For other questions, please directly give the concise and accurate answer. "
)
ASKED = "Please directly give the answer without any additional output or explanation "


def predictions(*folders: Path) -> dict[str, list[Line]]:
    paths = sorted(path for folder in folders for path in folder.glob("*.jsonl"))
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in paths}


def document(**fields: object) -> dict[str, Any]:
    content = {"input": "Ann lives.", "instructions": ["Who?"], "outputs": ["Ann"], "evaluation": "exam"}
    return {**content, **fields}


def write(folder: Path, name: str, *rows: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def record(**fields: object) -> Record:
    content = {"id": "0", "document": "Doc {x} text", "instruction": "Q?", "reference": "two words"}
    return {**content, "evaluation": "exam", "turn": 0, **fields}


def line(pred: str, gt: str, **fields: object) -> Line:
    return {"pred": pred, "gt": gt, "evaluation": "exam", **fields}


def prompt_text(dataset: str, tokenizer: PreTrainedTokenizerFast, **keys: object) -> str:
    return str(tokenizer.decode(TASK.prompt(options("leval", **keys), dataset, record(), tokenizer)))


@pytest.mark.parametrize("searched", ["whole", "first_line"])
def test_scores_are_those_of_the_official_scorer(shared_data: Path, searched: str) -> None:
    """Before and after 2023-10-09 alike: no published prediction has a second line with the answer."""
    folder = shared_data / "predictions" / "leval"
    expected = json.loads((folder / "expected.json").read_text())["files"]
    lines = predictions(folder / "exam_turbo-16k-0613", folder / "ngram_turbo-16k-0613")
    documents = TASK.score(options("leval", exact_match=searched), lines)
    assert len(expected) == len(documents["result.json"]) == 19
    for name, wanted in expected.items():
        dataset = name.split("/")[1].removesuffix(".pred.jsonl")
        detail = documents["result_detail.json"]["metrics"][dataset]
        if dataset == "topic_retrieval_longchat":
            for part, metrics in wanted["metrics"].items():
                numbers = {key: value for key, value in metrics.items() if not key.startswith("display")}
                assert {key: detail[part][key] for key in numbers} == pytest.approx(numbers, abs=0.01)
            assert documents["result.json"][dataset]["LEval_score"] == pytest.approx((96 + 98 + 44) / 3, abs=0.01)
        else:
            found = {key: detail[key] for key in wanted["metrics"]}
            assert found == pytest.approx(wanted["metrics"], abs=0.01), dataset
            score = documents["result.json"][dataset]["LEval_score"]
            assert score == pytest.approx(wanted["metrics"]["LEval_score"], abs=0.01)


def test_standard_errors_of_every_kind(shared_data: Path) -> None:
    folder = shared_data / "predictions" / "leval"
    lines = predictions(folder / "exam_turbo-16k-0613", folder / "ngram_turbo-16k-0613")
    detail = TASK.score(None, lines)["result_detail.json"]
    share = detail["datasets"]["gsm100"]
    assert share["stderr"] == pytest.approx(100 * (0.84 * 0.16 / 100) ** 0.5, rel=0.1)
    assert all(0 < score["stderr"] < 10 for score in detail["datasets"].values())
    assert share["interval"] == interval_of_marks([1.0] * 84 + [0.0] * 16)
    for name, score in detail["datasets"].items():
        low, high = score["interval"]
        assert 1 < (high - low) / (2 * score["stderr"]) < 6, name
    assert detail["average"]["closed_ended"]["count"] == 6
    assert detail["average"]["open_ended"]["count"] == 13


def test_data_sets() -> None:
    assert set(TASK.datasets()) == {
        "coursera",
        "gsm100",
        "quality",
        "tpo",
        "codeU",
        "sci_fi",
        "topic_retrieval_longchat",
    }
    assert len(TASK.known_datasets()) == 20


def test_prompts_of_llama2() -> None:
    tokenizer = byte_tokenizer(LLAMA2_TEMPLATE)
    exam = "[/INST]\nAnswer:"
    message = f"Document is as follows. Doc {{x}} text \nQuestion: Q?.  {ASKED}"
    assert prompt_text("quality", tokenizer) == f"<s>[INST]<<SYS>>\n{SINGLE}\n<</SYS>>\n\n{message}{exam}"
    assert prompt_text("tpo", tokenizer) == prompt_text("quality", tokenizer)
    coursera = prompt_text("coursera", tokenizer)
    assert "there could be a sinlge correct option or multiple correct options" in coursera
    assert coursera.endswith(message + exam)
    fiction = prompt_text("sci_fi", tokenizer)
    assert fiction.startswith("<s>[INST]<<SYS>>\nNow you are given a scientific fiction.")
    assert fiction.endswith(message + exam)
    # Worked examples and code go on: their instruction is not closed.
    for dataset in ("gsm100", "codeU"):
        assert prompt_text(dataset, tokenizer).endswith("\n<</SYS>>\n\nDoc {x} text\n\nQ?")
    assert prompt_text("gsm100", tokenizer).startswith("<s>[INST]<<SYS>>\nGiven several question answer pairs,")
    topic = prompt_text("topic_retrieval_longchat", tokenizer)
    assert topic.startswith("<s>[INST]<<SYS>>\nBelow is a record of our previous conversation")
    assert topic.endswith("\n<</SYS>>\n\nDoc {x} text\n\nQ?[/INST]")
    summary = prompt_text("news_summ", tokenizer)
    assert summary.endswith(
        "Document is as follows. Doc {x} text Instruction: Q? \nAnswer this question with 2 words.[/INST]"
    )


def test_prompts_of_other_models() -> None:
    message = f"Document is as follows. Doc {{x}} text \nQuestion: Q?.  {ASKED}\nAnswer:"
    plain = byte_tokenizer(PLAIN_TEMPLATE)
    assert prompt_text("quality", plain) == f"<system>{SINGLE}</><user>{message}</><assistant>"
    other = prompt_text("quality", plain, system_prompt="Be brief.")
    assert other == f"<system>Be brief.</><user>{message}</><assistant>"
    assert prompt_text("gsm100", plain).endswith("<user>Doc {x} text\n\nQ?</><assistant>")
    assert prompt_text("quality", byte_tokenizer()) == f"<s>{SINGLE}\n{message}"
    assert prompt_text("quality", byte_tokenizer(LLAMA2_TEMPLATE), chat="none") == f"<s>{SINGLE}\n{message}"


def test_the_whole_text_is_the_prompt_of_a_documents_first_instruction() -> None:
    text = f"Document is as follows. Doc {{x}} text \nQuestion: Q?.  {ASKED}\nAnswer:"
    assert TASK.whole_text("quality", record()) == SINGLE + text
    assert TASK.whole_text("quality", record(turn=1)) is None


@pytest.mark.parametrize("cut_at_start", [False, True])
@pytest.mark.parametrize("limit", [1700, 2500])
def test_documents_lose_words_as_in_the_official_loop(limit: int, cut_at_start: bool) -> None:
    tokenizer = byte_tokenizer()
    text = " ".join(str(i % 7) for i in range(3000))  # two tokens per word
    wanted, count = text, 0
    while len(tokenizer(wanted)["input_ids"]) > limit:
        words = wanted.split(" ")
        wanted = " ".join(words[count - limit :] if cut_at_start else words[: limit - count])
        count += 250
    assert fit_document(text, tokenizer, limit, cut_at_start=cut_at_start) == wanted
    assert wanted
    assert wanted != text


def test_short_and_spaceless_documents() -> None:
    tokenizer = byte_tokenizer()
    assert fit_document("one two", tokenizer, 8, cut_at_start=False) == "one two"
    assert fit_document("one two", tokenizer, 7, cut_at_start=False) == "one"  # not nothing
    assert fit_document("x" * 900, tokenizer, 800, cut_at_start=False) == ""


def test_code_is_cut_at_its_start_and_the_room_is_named() -> None:
    tokenizer = byte_tokenizer()
    words = " ".join(f"w{i}" for i in range(2000))
    opts = options("leval", max_pe=5000)
    for dataset, kept, lost in (("codeU", "w1999", "w0 "), ("gsm100", "w0 ", "w1999")):
        text = tokenizer.decode(TASK.prompt(opts, dataset, record(document=words), tokenizer))
        assert kept in text
        assert lost not in text
    with pytest.raises(UserError, match=r"max_pe = 562 .*'tpo'; it needs 563"):
        TASK.prompt(options("leval", max_pe=562), "tpo", record(), tokenizer)
    assert TASK.prompt(options("leval", max_pe=90, max_new_tokens=8), "tpo", record(), tokenizer)


def test_one_record_per_instruction_of_documents_that_have_a_metric(tmp_path: Path) -> None:
    write(
        tmp_path / "Open-ended-tasks",
        "news_summ.jsonl",
        document(instructions=["a", "b"], outputs=["1", "2"], evaluation="rouge"),
        document(evaluation="LLM"),
        document(evaluation="human"),
        document(instructions=["c"], outputs=["3"], evaluation="f1"),
    )
    found = list(TASK.records(options("leval", data_dir=tmp_path), "news_summ"))
    assert [(item["id"], item["instruction"], item["reference"]) for item in found] == [
        ("000-00", "a", "1"),
        ("000-01", "b", "2"),
        ("003-00", "c", "3"),
    ]
    write(tmp_path, "tpo.jsonl", document(outputs=[]))
    with pytest.raises(UserError, match="document 0 has not as many outputs as instructions"):
        list(TASK.records(options("leval", data_dir=tmp_path), "tpo"))
    with pytest.raises(UserError, match=r"data_dir has no 'codeU\.jsonl'"):
        list(TASK.records(options("leval", data_dir=tmp_path), "codeU"))


def test_folders_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def remember(repository: str, name: str, options: object) -> Path:
        asked.append((repository, name))
        return tmp_path / "any.jsonl"

    write(tmp_path, "any.jsonl", document())
    monkeypatch.setattr(leval, "hub_file", remember)
    for dataset in (*CLOSED_ENDED, *OPEN_ENDED):
        list(TASK.records(options("leval"), dataset))
    assert asked[0] == ("L4NLP/LEval", "LEval/Exam/coursera.jsonl")
    assert asked[-1] == ("L4NLP/LEval", "LEval/Generation/tv_show_summ.jsonl")


def test_predict_fills_the_published_fields() -> None:
    engine = FakeEngine(byte_tokenizer(), lambda prompt: "B")
    found = TASK.predict(engine, options("leval"), "tpo", record())
    length = len(engine.calls[0].prompt) - len("<s>") + 1
    assert found == {
        "query": "Q?",
        "gt": "two words",
        "prompt": f"{SINGLE}Document is as follows. <long document> \nQuestion: Q?.  {ASKED}\nAnswer:",
        "pred": "B",
        "evaluation": "exam",
        "prefill_len": length,
        "final_len": length + 1,
        "turn": 0,
    }
    assert engine.calls[0].max_new_tokens == 512


@pytest.mark.parametrize(
    ("template", "before", "after"),
    [(LLAMA2_TEMPLATE, "<s>", ""), (PLAIN_TEMPLATE, "<user>", "</><assistant>"), (None, "<s>", "")],
)
def test_science_fiction_is_asked_of_the_world_too(template: str | None, before: str, after: str) -> None:
    asked = "Ships fly. Answer this question based on the world described in the document."
    engine = FakeEngine(byte_tokenizer(template), lambda prompt: "False" if "real-world" in prompt else "True")
    item = record(instruction=asked, reference="True [fact: False]")
    found = TASK.predict(engine, options("leval"), "sci_fi", item)
    probe = (
        "Ships fly. Answer this question based on the real-world knowledge and facts up until your last training"
        "Please directly answer without any additional output or explanation. \nAnswer:"
    )
    assert fact_probe(asked) == probe
    assert engine.calls[1].prompt == before + probe + after
    assert found["pred"] == "True [fact: False]"
    assert (
        found["final_len_fact"] == len(engine.tokenizer(engine.calls[1].prompt, add_special_tokens=False).input_ids) + 5
    )


def test_science_fiction_scores_document_and_world() -> None:
    found = TASK.score(
        None,
        {
            "sci_fi": [
                line("True [fact: False]", "True [fact: False]"),
                line("It is false. [fact: who knows]", "False [fact: True]"),
                line("no idea", "True [fact: True]"),
                line("False [fact: true]", "True [fact: True]"),
            ]
        },
    )
    detail = found["result_detail.json"]
    for part, marks in (("loyalty score", [1.0, 1.0, 0.0, 0.0]), ("fact score", [1.0, 0.0, 0.0, 1.0])):
        assert detail["metrics"]["sci_fi"][part]["exact_match"] == 50.0
        stderr = bootstrap_stderr([100 * mark for mark in marks])
        interval = interval_of_marks(marks)
        wanted = {"score": 50.0, "stderr": pytest.approx(stderr, abs=1e-3), "count": 4, "interval": interval}
        assert detail["parts"]["sci_fi"][part] == wanted
    assert found["result.json"] == {"sci_fi": {"LEval_score": 50.0}}
    # A record's score is the mean of its two marks: 1, 1/2, 0, 1/2.
    stderr = bootstrap_stderr([100.0, 50.0, 0.0, 50.0])
    assert detail["datasets"]["sci_fi"]["stderr"] == pytest.approx(stderr, abs=1e-3)
    assert detail["datasets"]["sci_fi"]["interval"] == interval_of_marks([1.0, 0.5, 0.0, 0.5])


def test_an_answer_in_a_later_line_counts_unless_the_old_scorer_is_asked_for() -> None:
    lines = {
        "topic_retrieval_longchat": [line("The topic:\nSun", "sun", turn=turn) for turn in range(3)],
        "sci_fi": [line("true [fact: true]", "True [fact: True]")],
        "codeU": [line("It prints\n3 x", "3 x")],
    }
    for chosen, searched, score in (
        (None, "whole", 100.0),
        (options("leval"), "whole", 100.0),
        (options("leval", exact_match="first_line"), "first_line", 0.0),
    ):
        found = TASK.score(chosen, lines)
        assert found["result.json"]["topic_retrieval_longchat"] == {"LEval_score": score}
        assert found["result.json"]["sci_fi"] == found["result.json"]["codeU"] == {"LEval_score": 100.0}
        assert found["result_detail.json"]["exact_match"] == searched


def test_topics_by_turn_even_where_a_prediction_is_missing() -> None:
    lines = [line("it is sun", "Sun", turn=0), line("moon", "Mars", turn=2), line("Moon", "Moon", turn=1)]
    parts = TASK.score(None, {"topic_retrieval_longchat": lines})["result_detail.json"]["metrics"]
    parts = parts["topic_retrieval_longchat"]
    scores = [parts[f"first {turn} sentence retrieval score"]["exact_match"] for turn in (1, 2, 3)]
    assert scores == [100.0, 100.0, 0.0]
    assert parts["LEval_score"] == pytest.approx(200 / 3, abs=1e-4)


def test_fields_of_other_programs() -> None:
    named = {"m-4k_pred": "A", "gt": "A", "evaluation": "exam"}
    judged = {"m-4k_pred": "A", "gt": "A", "evaluation": "LLM"}
    assert TASK.score(None, {"tpo.pred": [named, judged]})["result.json"] == {"tpo": {"LEval_score": 100.0}}
    with pytest.raises(UserError, match="'other' is no data set of leval"):
        TASK.score(None, {"other": [named]})
    with pytest.raises(UserError, match="'tpo': predictions have neither 'pred'"):
        TASK.score(None, {"tpo": [{"gt": "A", "evaluation": "exam"}]})
    with pytest.raises(UserError, match="'tpo': a prediction has no 'gt'"):
        TASK.score(None, {"tpo": [{"pred": "A", "evaluation": "exam"}]})


def test_a_few_documents_end_to_end(shared_data: Path) -> None:
    opts = options("leval", data_dir=shared_data / "leval", max_pe=6000)
    tokenizer = byte_tokenizer(PLAIN_TEMPLATE)
    lines: dict[str, list[Line]] = {}
    for dataset in ("coursera", "gsm100", "quality", "sci_fi", "topic_retrieval_longchat", "tpo", "natural_question"):
        lines[dataset] = []
        for item in list(TASK.records(opts, dataset))[:3]:

            def answer(prompt: str, item: Record = item) -> str:
                loyalty, _, fact = item["reference"].partition(" [fact: ")
                return str(fact.removesuffix("]") if "real-world knowledge" in prompt else loyalty)

            engine = FakeEngine(tokenizer, answer)
            lines[dataset].append(TASK.predict(engine, opts, dataset, item))
            assert len(engine.calls) == (2 if dataset == "sci_fi" else 1)
            assert item["instruction"] in engine.calls[0].prompt
            assert len(lines[dataset]) == 1 or lines[dataset][0]["query"] != lines[dataset][-1]["query"]
    assert TASK.score(opts, lines)["result.json"] == {dataset: {"LEval_score": 100.0} for dataset in lines}


def test_every_published_prompt_is_used() -> None:
    used = {build_prompt(dataset, "d", "i", "r").system for dataset in (*CLOSED_ENDED, *OPEN_ENDED)}
    assert used == set(leval._PROMPTS["system"].values())
