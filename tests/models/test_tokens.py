from models.tokens import common_prefix


def test_a_common_prefix_ends_where_sequences_part_or_the_shorter_ends() -> None:
    assert [common_prefix([1, 2, 3], [1, 2, 4]), common_prefix([], [1]), common_prefix([1, 2], (1, 2, 3))] == [2, 0, 2]
    assert common_prefix([5, 1], [6, 1]) == 0
