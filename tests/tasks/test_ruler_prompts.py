"""RULER's generators: exact lengths, answers that the prompt itself proves, and the published wording."""

from __future__ import annotations

import re
from collections import Counter
from typing import get_args

import pytest

from pipeline.model_files import read_tokenizer
from tasks.chat import chat_ids
from tasks.errors import UserError
from tasks.ruler_prompts import DatasetName, Sample, fit, tokens_to_generate

TOKENIZER = read_tokenizer("tiny")
DATASETS: tuple[DatasetName, ...] = get_args(DatasetName)


def tokenise(sample: Sample) -> list[int]:
    return chat_ids(TOKENIZER, sample.message, answer_prefix=sample.answer_prefix)


def text_of(dataset: DatasetName, length: int, depth: float = 0.5, seed: int = 1) -> tuple[str, tuple[str, ...]]:
    ids, sample = fit(dataset, seed, depth, length, tokenise)
    return str(TOKENIZER.decode(ids, skip_special_tokens=True)), sample.answers


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("length", [1201, 4096, 5003])
def test_a_prompt_has_the_very_length(dataset: DatasetName, length: int) -> None:
    for seed in range(2):
        ids, _ = fit(dataset, seed, 0.3, length, tokenise)
        assert len(ids) == length


@pytest.mark.parametrize("dataset", DATASETS)
def test_what_is_drawn_depends_on_the_seed_alone(dataset: DatasetName) -> None:
    once, again, other = (fit(dataset, seed, 0.3, 1500, tokenise) for seed in ("a", "a", "b"))
    assert once == again
    assert once[0] != other[0]
    assert once[1].answers != other[1].answers
    assert once[1].answers == fit(dataset, "a", 0.9, 2500, tokenise)[1].answers


@pytest.mark.parametrize("dataset", ["niah_single_1", "niah_multikey_2", "niah_multikey_3"])
@pytest.mark.parametrize("depth", [0.0, 0.25, 1.0])
def test_a_needle_lies_at_its_depth_and_has_the_key_that_is_asked_for(dataset: DatasetName, depth: float) -> None:
    text, (value,) = text_of(dataset, 2003, depth)
    kind = "uuid" if dataset == "niah_multikey_3" else "number"
    asked = re.search(rf"What is the special magic {kind} for (\S+) mentioned in the provided text\?", text)
    assert asked is not None
    lines = text.split("\n")[1:-1]
    (place,) = (at for at, line in enumerate(lines) if f"for {asked[1]} is:" in line)
    assert lines[place] == f"One of the special magic {kind}s for {asked[1]} is: {value}."
    assert place / (len(lines) - 1) == pytest.approx(depth, abs=1.5 / len(lines))
    assert text.count(value) == 1
    assert text.startswith(f"A special magic {kind} is hidden within the following text. Make sure to memorize it.")
    assert text.endswith(f" The special magic {kind} for {asked[1]} mentioned in the provided text is")


def test_the_noise_of_multikey_is_other_needles() -> None:
    text, _ = text_of("niah_multikey_2", 2003)
    lines = text.split("\n")[1:-2]
    found = [re.fullmatch(r"One of the special magic numbers for [a-z]+-[a-z]+ is: \d{7}\.", line) for line in lines]
    assert all(found)
    assert len(set(lines)) > 0.9 * len(lines)


def test_variables_are_those_that_the_assignments_give_the_value() -> None:
    text, answers = text_of("vt", 2501)
    example, question = text.split("Memorize and track", 2)[1:]
    for part, names in ((question, answers), (example, None)):
        value = re.search(r"assigned the value (\d{5}) in the text above", part)
        assert value is not None
        holding: dict[str, str] = {}
        for new, old in re.findall(r"^VAR ([A-Z]+) = (?:VAR )?(\w+) ?$", part, flags=re.MULTILINE):
            holding[new] = holding.get(old, old)  # in their order in the text: none is used before it is assigned
        found = [name for name, held in holding.items() if held == value[1]]
        assert len(found) == 5
        if names is not None:
            assert tuple(found) == names
        else:
            assert f"they are:  {' '.join(found)}\n\n" in part


@pytest.mark.parametrize(("length", "repeats"), [(2047, (6, 1)), (4999, (30, 3))])
def test_common_words_are_the_most_frequent(length: int, repeats: tuple[int, int]) -> None:
    text, answers = text_of("cwe", length)
    example, listed = text.split("Below is a numbered list", 2)[1:]
    numbers, words = zip(*re.findall(r"(\d+)\. ([a-z]+)(?= \d|\s*\n)", listed), strict=True)
    assert list(map(int, numbers)) == list(range(1, len(numbers) + 1))
    counts = Counter(words)
    assert {word for word, _ in counts.most_common(10)} == set(answers)
    assert {counts[word] for word in answers} <= {repeats[0], repeats[0] + 1}
    assert max(count for word, count in counts.items() if word not in answers) <= repeats[1] + 1
    assert len(answers) == len(set(answers)) == 10
    worked, answer = re.split(r" Answer: The top 10 words that appear most often in the list are: ", example)
    most = {word for word, _ in Counter(re.findall(r"\d+\. (\w+)", worked)).most_common(10)}
    assert set(re.findall(r"\d+\. (\w+)", answer)) == most


@pytest.mark.parametrize("length", [1501, 5003])
def test_frequent_words_fall_with_the_square_of_their_rank(length: int) -> None:
    text, answers = text_of("fwe", length)
    context = text.split("coded words. ", 1)[1].split("\nQuestion")[0]
    counts = Counter(re.findall(r"\b[a-z]{6}\b", context))
    assert tuple(word for word, _ in counts.most_common(3)) == answers
    second, third, fourth = (counts[word] for word in answers)
    assert second / third == pytest.approx(9 / 4, rel=0.2)
    assert second / fourth == pytest.approx(16 / 4, rel=0.3)


def test_too_short_a_length_is_refused() -> None:
    with pytest.raises(UserError, match=r"a prompt of vt has at least \d+ tokens; 300 are too few"):
        fit("vt", 0, 0.5, 300, tokenise)


def test_the_published_numbers_of_tokens() -> None:
    assert [tokens_to_generate(dataset) for dataset in DATASETS] == [128, 128, 128, 30, 120, 50]
