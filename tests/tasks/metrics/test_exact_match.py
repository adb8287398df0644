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
        ("else\nthe role of art", "the role of art", 0.0),
        ("<error>", "true", 0.0),
    ],
)
def test_marks(prediction: str, answer: str, score: float) -> None:
    assert exact_match(prediction, answer) == score
