from hypothesis import given
from hypothesis import strategies as st

from tasks.metrics.lcs import lcs_indices, lcs_length

words = st.lists(st.sampled_from("abc"), max_size=40)


def table(left: list[str], right: list[str]) -> list[list[int]]:
    rows = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else max(rows[i][j + 1], rows[i + 1][j])
    return rows


def walk(left: list[str], right: list[str]) -> list[int]:
    rows, i, j = table(left, right), len(left), len(right)
    found: list[int] = []
    while i and j:
        if left[i - 1] == right[j - 1]:
            i, j = i - 1, j - 1
            found.insert(0, i)
        elif rows[i - 1][j] > rows[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found


@given(words, words)
def test_length_is_the_tables(left: list[str], right: list[str]) -> None:
    assert lcs_length(left, right) == table(left, right)[-1][-1]


@given(words, words)
def test_indices_are_the_walks_through_the_table(left: list[str], right: list[str]) -> None:
    assert lcs_indices(left, right) == walk(left, right)


def test_long_sequences_need_no_stack() -> None:
    left = [str(i % 97) for i in range(5000)]
    assert lcs_indices(left, left) == list(range(5000))
