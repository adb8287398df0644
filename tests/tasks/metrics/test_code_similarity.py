import pytest

from tasks.metrics.code_similarity import code_similarity, first_code_line


def test_blocks_of_difflib_and_not_edit_distance() -> None:
    # difflib takes the longest block, BBB: 2 · 3 of 15 characters. Levenshtein's ratio would find 1234: 0.53.
    assert code_similarity("BBB1234", "12x34BBB") == 0.4


def test_percent_is_whole() -> None:
    assert code_similarity("abcdefg", "abc") == 0.6
    assert code_similarity("return x", "return y") == 0.88  # 14 / 16 = 0.875, to the even percent
    assert code_similarity("return x", "return x") == 1.0
    assert code_similarity("", "return x") == 0.0


@pytest.mark.parametrize(
    ("prediction", "line"),
    [
        ("\n\nx = 1\ny = 2", "x = 1"),
        ("# a comment\nx = 1", "x = 1"),
        ("```python\n// no\n    x = 1", "    x = 1"),
        ("url = 'http://x'", ""),
        ("\n  \nx = 1", "  "),
    ],
)
def test_first_line_without_comment_marks(prediction: str, line: str) -> None:
    assert first_code_line(prediction) == line
