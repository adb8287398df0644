import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import get_task, needle
from tasks import needle_prompts as prompts
from tasks.base import Record
from tasks.chat import chat_ids
from tasks.errors import UserError
from tasks.needle import NeedleOptions
from tests.pipeline.small import word_tokenizer
from tests.tasks.fakes import FakeEngine, options

TASK = get_task("needle")
PASSKEY = get_task("passkey_retreival")
TOKENIZER = word_tokenizer()


def char_tokenise(text: str) -> list[int]:
    """A tokenizer of one token per character; every length is possible."""
    return [ord(character) for character in text]


def pair_tokenise(text: str) -> list[int]:
    """A tokenizer of one token per word and one per space run, so that lengths jump."""
    ids = []
    for word in text.split():
        ids += [len(word), 0]
    return ids


def text_of(ids: list[int]) -> str:
    return "".join(chr(i) for i in ids)


def engine_saying(text: str) -> FakeEngine:
    """Answers with a fixed text, whatever the prompt."""
    return FakeEngine(TOKENIZER, lambda prompt: text)


def needle_options(**keys: object) -> NeedleOptions:
    content = {"max_pe": 4096, "min_k": 0.2, "max_k": 0.5, "gap": 0.1, "times": 2, **keys}
    return NeedleOptions.model_validate(content)


def test_sixteen_depths_times_trials_times_lengths() -> None:
    records = list(TASK.records(needle_options(), "needle"))
    assert len(records) == 4 * 16 * 2
    assert len({record["id"] for record in records}) == len(records)
    assert sorted({record["context_length"] for record in records}) == [200, 300, 400, 500]
    depths = sorted({record["depth_percent"] for record in records})
    assert depths == [6.25 * i for i in range(1, 17)]
    keys = [record["answer"] for record in records]
    assert len(set(keys)) > 120
    assert all(50_000 <= int(key) <= 500_000 for key in keys)


def test_records_depend_on_the_seed_and_not_on_the_run() -> None:
    def keys(opts: NeedleOptions) -> list[str]:
        return [record["answer"] for record in TASK.records(opts, "needle")]

    assert keys(needle_options()) == keys(needle_options())
    assert keys(needle_options()) != keys(needle_options(seed=1))
    longer = {record["id"]: record["answer"] for record in TASK.records(needle_options(max_k=0.6), "needle")}
    assert all(longer[r["id"]] == r["answer"] for r in TASK.records(needle_options(), "needle"))


@pytest.mark.parametrize(
    ("keys", "lengths"),
    [
        ({"max_pe": 32768, "min_k": 1, "max_k": 16, "gap": 4}, [1000, 5000, 9000, 13000]),
        ({"max_pe": 32768, "min_k": 16, "max_k": 16, "gap": 4}, [16000]),
        ({"max_pe": 32768, "min_k": 0.2, "max_k": 1.2, "gap": 0.1}, [200 + 100 * i for i in range(11)]),
        ({"max_pe": 8192, "min_k": 4, "max_k": None, "gap": 4}, [4000, 8000]),
        ({"max_pe": 8192, "min_k": 4, "max_k": 8.192, "gap": 4.192}, [4000, 8192]),
    ],
)
def test_lengths_are_thousands_of_tokens(keys: dict[str, Any], lengths: list[int]) -> None:
    found = sorted({record["context_length"] for record in TASK.records(needle_options(times=1, **keys), "needle")})
    assert found == lengths


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"max_pe": 8192, "min_k": 1, "max_k": 9}, "9000 tokens is beyond max_pe = 8192"),
        ({"max_pe": 512, "min_k": 1, "max_k": None}, "1000 tokens is beyond max_pe = 512"),
        ({"max_pe": 1024, "min_k": 1, "max_k": None}, "1000 tokens, with 48 for its answer, is beyond max_pe = 1024"),
    ],
)
def test_lengths_beyond_the_target_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        list(TASK.records(needle_options(gap=1, **keys), "needle"))


def test_published_passkey_wording() -> None:
    """The text as landmark attention's and ChunkLlama's generators print it, written out by hand."""
    needle = prompts.passkey_needle("4711")
    assert prompts.passkey_prompt(40, 0.5, needle) == (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
        "I will quiz you about the important information there.\n"
        "The grass is green. \n"
        "The pass key is 4711. Remember it. 4711 is the pass key.\n"
        "The grass is green. \n"
        "What is the pass key? The pass key is"
    )
    assert prompts.garbage_text(2 * 89 + 1) == f"{prompts.GARBAGE} {prompts.GARBAGE}"


def test_published_sandwich_wording_moves_to_the_end_of_a_sentence() -> None:
    needle = prompts.sandwich_needle()
    essays = "One two. Three four five. Six."
    text = prompts.essays_prompt(len(essays), 0.75, needle, essays)
    assert (
        "One two.\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
        "\nThree four five. Six."
    ) in text
    assert text.endswith(
        "What is the best thing to do in San Francisco? "
        "Don't give information outside the document or repeat your findings"
    )
    assert needle.answer in needle.line


@given(
    length=st.integers(400, 3000),
    depth=st.sampled_from(prompts.depths()),
    essays=st.sampled_from([None, " ".join(["A short. Essay of words, and more."] * 5)]),  # as `read_essays` gives them
    sandwich=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_prompts_have_the_exact_length_where_the_tokenizer_allows(
    length: int, depth: float, essays: str | None, sandwich: bool
) -> None:
    needle = prompts.sandwich_needle() if sandwich else prompts.passkey_needle("123456")
    ids = prompts.fit_prompt(length, depth, needle, essays, char_tokenise)
    # The needle's move to a sentence's end eats the blank behind it, which is one character.
    assert length - (essays is not None) <= len(ids) <= length
    text = text_of(ids)
    assert text.count(needle.line) == 1
    assert needle.introduction in text
    assert text.endswith(needle.question)


@given(length=st.integers(180, 3000), depth=st.sampled_from(prompts.depths()))
@settings(max_examples=40, deadline=None)
def test_prompts_are_never_longer_and_hardly_shorter(length: int, depth: float) -> None:
    ids = prompts.fit_prompt(length, depth, prompts.passkey_needle("1"), None, pair_tokenise)
    assert length - 3 <= len(ids) <= length


def test_the_needle_lies_at_its_depth() -> None:
    needle = prompts.passkey_needle("123456")
    essays = "Some words of an essay. " * 50
    for haystack in (None, essays):
        for depth in prompts.depths():
            text = text_of(prompts.fit_prompt(5000, depth, needle, haystack, char_tokenise))
            before = text.index(needle.line) - len(needle.introduction)
            after = len(text) - text.index(needle.line) - len(needle.line) - len(needle.question)
            assert before / (before + after) == pytest.approx(depth, abs=0.01)


def test_a_length_below_the_wording_is_refused() -> None:
    with pytest.raises(UserError, match="impossible"):
        prompts.fit_prompt(50, 0.5, prompts.passkey_needle("1"), None, char_tokenise)


def test_sixteen_thousand_tokens_over_both_haystacks(shared_data: Path) -> None:
    opts = options(
        "needle", max_pe=17000, min_k=16, max_k=16, gap=1, times=1, haystack="essays", data_dir=shared_data / "essays"
    )
    for case in (opts, options("needle", max_pe=17000, min_k=16, max_k=16, gap=1, times=1)):
        for record in list(TASK.records(case, "needle"))[::5]:
            ids = TASK.prompt(case, "needle", record, TOKENIZER)
            assert abs(len(ids) - 16000) <= 1


def test_prediction_line_and_score() -> None:
    opts = needle_options(max_k=0.2, times=4)
    records = list(TASK.records(opts, "needle"))
    lines = []
    for index, record in enumerate(records):
        engine = engine_saying(f" The key is {record['answer']}!" if index % 4 else "no idea")
        line = TASK.predict(engine, opts, "needle", record)
        assert line["prefill_len"] == len(engine.calls[0].ids) == 200
        assert line["final_len"] > 200
        lines.append(line)
    documents = TASK.score(opts, {"needle": lines})
    assert [cell["score"] for cell in documents["result.json"]] == [0.75] * 16
    assert set(documents["result.json"][0]) == {"context_length", "depth_percent", "score"}
    overall = documents["result_detail.json"]["overall"]
    assert overall["count"] == 64
    assert overall["stderr"] == pytest.approx((0.75 * 0.25 / 64) ** 0.5)


def test_tables_and_pictures_have_one_average() -> None:
    """Also where a length has fewer trials, and where lengths differ: then their mean is known better than a share."""
    opts = needle_options(max_k=0.4, times=2)
    records = list(TASK.records(opts, "needle"))
    kept = [one for index, one in enumerate(records) if one["context_length"] == 200 or index % 2 == 0]
    assert len(kept) < len(records)
    lines = [
        TASK.predict(
            engine_saying(record["answer"] if record["context_length"] == 200 or index % 4 == 0 else "no idea"),
            opts, "needle", record,
        )
        for index, record in enumerate(kept)
    ]  # fmt: skip
    documents = TASK.score(opts, {"needle": lines})
    overall = documents["result_detail.json"]["overall"]
    tabled = TASK.average(TASK.columns("result.json", documents))
    assert tabled is not None
    assert overall["count"] == len(kept)
    assert overall["score"] == pytest.approx(tabled.score)
    assert overall["interval"] == pytest.approx(tabled.interval)


def test_containment_ignores_case_and_nothing_else() -> None:
    answer = prompts.SANDWICH_ANSWER
    opts = needle_options()

    def score(pred: str, wanted: str) -> float:
        line = {"context_length": 1, "depth_percent": 50.0, "answer": wanted, "pred": pred}
        return float(TASK.score(opts, {"needle": [line]})["result.json"][0]["score"])

    assert score(f"You should {answer.upper()}.", answer) == 1
    assert score("eat a sandwich", answer) == 0
    assert score("5432", "54321") == 0
    assert score("it is 54321.", "54321") == 1


def test_needle_and_haystack_combine_freely(shared_data: Path) -> None:
    def record(**keys: object) -> Record:
        return next(iter(TASK.records(needle_options(data_dir=shared_data / "essays", **keys), "needle")))

    assert record(haystack="essays")["answer"] == prompts.SANDWICH_ANSWER
    assert record(haystack="essays", needle="passkey")["answer"].isdigit()
    assert record(haystack="passkey")["answer"].isdigit()
    assert record(haystack="passkey", needle="sandwich")["answer"] == prompts.SANDWICH_ANSWER


def test_essays_folder_must_have_texts(tmp_path: Path) -> None:
    opts = needle_options(haystack="essays", data_dir=tmp_path)
    record = next(iter(TASK.records(opts, "needle")))
    with pytest.raises(UserError, match=r"no \*\.txt files"):
        TASK.prompt(opts, "needle", record, TOKENIZER)


def test_passkey_retrieval() -> None:
    assert PASSKEY.name == "passkey_retrieval"
    opts = options("passkey_retrieval", n_garbage=700, times=30)
    records = list(PASSKEY.records(opts, "passkey_retrieval"))
    assert len(records) == 30
    assert all(1 <= int(record["answer"]) <= 50_000 for record in records)
    depths = [record["depth_percent"] for record in records]
    assert min(depths) < 20
    assert max(depths) > 80
    ids = PASSKEY.prompt(opts, "passkey_retrieval", records[0], TOKENIZER)
    needle = prompts.passkey_needle(records[0]["answer"])
    assert ids == chat_ids(TOKENIZER, prompts.passkey_prompt(700, depths[0] / 100, needle))
    answers = [record["answer"] for record in records[:3]] + ["none"]
    lines = [
        PASSKEY.predict(engine_saying(answer), opts, "passkey_retrieval", record)
        for answer, record in zip(answers, records[:4], strict=True)
    ]
    assert PASSKEY.score(opts, {"passkey_retrieval": lines})["result.json"] == {"accuracy": 0.75}


def test_draw_passkey_covers_its_range() -> None:
    drawn = {int(prompts.draw_passkey(seed, 1, 6)) for seed in range(200)}
    assert drawn == {1, 2, 3, 4, 5, 6}
    assert random.Random("x").random() == random.Random("x").random(), "string seeds are stable"


def test_lengths_and_depths_can_be_listed() -> None:
    opts = needle_options(max_pe=4200, lengths=[4, 0.5, 1], depths=3, times=1)
    assert needle.prompt_lengths(opts) == [500, 1000, 4000]
    records = list(TASK.records(opts, "needle"))
    assert [record["depth_percent"] for record in records[:3]] == pytest.approx([100 / 3, 200 / 3, 100])
    assert len(records) == 9
