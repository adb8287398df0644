import pytest

from tasks.metrics.numbers import count_score, retrieval_score


def test_share_of_right_numbers() -> None:
    assert count_score("12", "12") == 1.0
    assert count_score("There are 12, not 13 or 120.", "12") == 1 / 3
    assert count_score("none", "12") == 0.0


@pytest.mark.parametrize("answer", ["Paragraph 7", "段落7"])
def test_number_of_the_passage(answer: str) -> None:
    assert retrieval_score("Paragraph 7 or 17", answer) == 0.5
    assert retrieval_score("段落7", answer) == 1.0


def test_an_answer_without_passage_is_an_error() -> None:
    with pytest.raises(ValueError, match="'seven'"):
        retrieval_score("7", "seven")
