import random

import pytest

from tasks.metrics.rouge import rouge_1_2_l, rouge_l, rouge_l_chinese


def texts(seed: int) -> str:
    """Texts of few words, so that they share some, with full stops, blank sentences and punctuation."""
    draw = random.Random(seed)
    pieces = ["the", "cat", "Cat", "sat", "mat,", "on", ".", "..", " . ", "A1", "\n", "don't"]
    return " ".join(draw.choices(pieces, k=draw.randrange(1, 60)))


def test_union_of_subsequences_over_distinct_words() -> None:
    # Six distinct words predicted, four expected; shared "the cat" in one sentence and "sat" in another.
    predicted, expected = "the cat ran. it sat down", "the cat sat. here"
    precision, recall = 3 / 6, 3 / 4
    assert rouge_l(predicted, expected) == pytest.approx(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("empty", ["", ".", "..."])
def test_empty_texts_score_zero(empty: str) -> None:
    assert rouge_l(empty, "the cat") == 0.0
    assert rouge_l("the cat", empty) == 0.0
    assert rouge_1_2_l(empty, "the cat") == (0.0, 0.0, 0.0)


def test_rouge_l_is_that_of_the_package() -> None:
    package = pytest.importorskip("rouge", reason="compares with the package rouge").Rouge()
    for seed in range(0, 300, 2):
        predicted, expected = texts(seed), texts(seed + 1)
        try:
            wanted = package.get_scores([predicted], [expected], avg=True)["rouge-l"]["f"]
        except (ValueError, AssertionError):  # a text without words
            wanted = 0.0
        assert rouge_l(predicted, expected) == pytest.approx(wanted, abs=1e-12), (predicted, expected)


def test_rouge_1_2_l_are_those_of_the_package() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="compares with the package rouge-score")
    package = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    for seed in range(0, 300, 2):
        predicted, expected = texts(seed), texts(seed + 1)
        wanted = [score.fmeasure for score in package.score(expected, predicted).values()]
        assert rouge_1_2_l(predicted, expected) == pytest.approx(wanted, abs=1e-12)


def test_chinese_is_compared_by_words() -> None:
    # Segmented 我 | 喜欢 | 北京 and 我 | 喜欢 | 上海: two of three words.
    assert rouge_l_chinese("我喜欢北京", "我喜欢上海") == pytest.approx(2 / 3, abs=1e-6)
