"""Reading a batch's padding, and the plan that follows."""

import pytest
import torch

from models.DPI.methods import build_method
from models.DPI.planning import Padding, make_plan
from tests.models.DPI import oracle


def _mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[int(c) for c in row] for row in rows])


def test_spans_of_rows() -> None:
    padding = Padding.read(_mask("0011111", "1111111", "1110000", "0011111"), 4, 3, 4)
    assert padding.spans == ((2, 5), (0, 7), (0, 3), (2, 5))
    assert padding.rows() == {(2, 5): [0, 3], (0, 7): [1], (0, 3): [2]}
    assert padding.key_positions(torch.device("cpu")).tolist()[0] == [0, 0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("mask", [None, _mask("11111", "11111"), torch.ones(2, 5, dtype=torch.bool)])
def test_no_padding_is_no_spans(mask: torch.Tensor | None) -> None:
    padding = Padding.read(mask, 2, 1, 4)
    assert padding.spans is None
    assert padding.rows() == {(0, 5): [0, 1]}
    assert padding.key_positions(torch.device("cpu")).tolist() == [[0, 1, 2, 3, 4]]


def test_a_mask_longer_than_the_tokens_is_cut() -> None:
    assert Padding.read(_mask("0111100"), 1, 2, 3).spans == ((1, 4),)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (_mask("11111", "11011"), r"hole in row 1 \(tokens 0 \.\.\. 4, 4 of them real\)"),
        (_mask("00000", "11111"), "no real token in row 0"),
        (_mask("111", "111"), "covers 3 tokens, fewer than the 1 in the cache and the 4 of this pass"),
        (_mask("00111"), "attention_mask has 1 row.s. for a batch of 2"),
        (_mask("00111", "11111", "11111"), "attention_mask has 3 row.s. for a batch of 2"),
    ],
)
def test_masks_that_no_method_can_read(mask: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Padding.read(mask, 2, 1, 4)


def test_rows_of_a_plan() -> None:
    method = build_method("dpi", {"local_window": 2, "chunk_coe": 3}, 8)
    padding = Padding.read(_mask("000" + "1" * 17, "1" * 20, "0" * 15 + "1" * 5, "1" * 6 + "0" * 14), 4, 10, 10)
    plan = make_plan(method, oracle.rope(8), padding, seed=0)
    assert not plan.plain
    assert [(row.rows, row.left, row.length, row.first_query, row.num_queries) for row in plan.rows] == [
        ((0,), 3, 17, 0, 10),
        ((1,), 0, 20, 0, 10),
        ((2,), 15, 5, 5, 5),
    ]


@pytest.mark.parametrize(("length", "plain"), [(8, True), (9, False)])
def test_a_plan_is_plain_only_if_every_row_is(length: int, plain: bool) -> None:
    method = build_method("dpi", {"local_window": 2}, 8)
    mask = _mask("0" * (length - 2) + "11", "1" * length)
    assert make_plan(method, oracle.rope(8), Padding.read(mask, 2, 0, length), seed=0).plain == plain


@pytest.mark.parametrize("mask", [None, _mask("1" * 6, "1" * 6)])
@pytest.mark.parametrize("new", [1, 3])
def test_positions_count_the_tokens(mask: torch.Tensor | None, new: int) -> None:
    past = 6 - new
    right = torch.arange(past, 6).expand(2, new)
    assert Padding.read(mask, 2, past, new, right) == Padding(None, past, new, 2)
    off = right + torch.tensor([[0], [2]])
    with pytest.raises(ValueError, match="position_ids of row 1 are 2 away"):
        Padding.read(mask, 2, past, new, off)
    for shape in ((2, new + 1), (3, new), (new,)):
        with pytest.raises(
            ValueError, match=rf"position_ids has the shape \({', '.join(map(str, shape))},?\); it must"
        ):
            Padding.read(mask, 2, past, new, torch.zeros(shape, dtype=torch.int64))


def test_positions_of_one_token_behind_padding() -> None:
    mask = _mask("001111", "111111")
    for position in (3, 5):  # counted from the row's first token, or on the key axis
        assert Padding.read(mask, 2, 5, 1, torch.tensor([[position], [5]])).spans == ((2, 4), (0, 6))
    with pytest.raises(ValueError, match="position_ids of row 0 are -1 away"):
        Padding.read(mask, 2, 5, 1, torch.tensor([[4], [5]]))
