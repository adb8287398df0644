import pytest

from tasks.metrics.token_f1 import qa_f1, qa_f1_chinese, token_f1


def test_bags_of_words() -> None:
    # Shared: a twice, b once; 3 of 4 and 3 of 5.
    assert token_f1(list("aabc"), list("aaabd")) == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert token_f1([], ["a"]) == 0.0


def test_english_words_without_case_articles_and_punctuation() -> None:
    assert qa_f1("The Cat's hat!", "cats hat") == 1.0
    assert qa_f1("a dog", "the cat") == 0.0


def test_chinese_words_without_punctuation_and_spaces() -> None:
    assert qa_f1_chinese("北京， 大学。", "北京大学") == pytest.approx(0.0)  # one word against two
    assert qa_f1_chinese("「清华大学」！", "清华大学") == 1.0
    assert qa_f1_chinese("。", "清华大学") == 0.0
