import pytest

from tasks.metrics.exact_match import exact_match


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("ABD", "ABD", 1.0),
        ("AD", "ABD", 0.25),
        ("ABC", "ABD", 0.0),
        ("None", "ABD", 0.0),
        ("18", "18", 1.0),
        ("18.0", "18", 1.0),
        ("180", "18", 0.0),
        ("", "18", 0.0),
        ("It was the Role of Art.", "the role of art", 1.0),
        ("\n.\nthe role of art\nelse", "the role of art", 1.0),
        ("else\nthe role of art", "the role of art", 1.0),
        ("the ro\nle of art", "the role of art", 0.0),
        ("<error>", "true", 0.0),
    ],
)
def test_marks(prediction: str, answer: str, score: float) -> None:
    assert exact_match(prediction, answer) == score


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("\n.\nThe Role of Art\nelse", 1.0),
        ("else\nthe role of art", 0.0),
        ("t\nt", 0.0),  # no line of more than one character: all of it
        ("theroleofart", 1.0),
    ],
)
def test_the_first_line_alone_as_until_october_2023(prediction: str, score: float) -> None:
    assert exact_match(prediction, "the role of art", "first_line") == score
    assert exact_match("x\n5", "x\n5", "first_line") == 1.0
    assert exact_match("AD", "ABD", "first_line") == 0.25
    assert exact_match("18.0", "18", "first_line") == 1.0
