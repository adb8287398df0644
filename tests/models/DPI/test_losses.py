"""Token losses: the same numbers whatever is formed at a time."""

import pytest
import torch

from models.DPI.losses import mean_loss_beyond, token_losses
from tests.models.DPI.helpers import WINDOW, MakeModel, logits, put, tokens


@pytest.mark.parametrize("slice_tokens", [1, 7, 1000])
@pytest.mark.parametrize("first_token", [1, 2, WINDOW, 76])
def test_losses_are_those_of_the_logits(make_model: MakeModel, slice_tokens: int, first_token: int) -> None:
    model, ids = put(make_model(WINDOW)), tokens(2, 77)
    expected = -logits(model, ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    found = token_losses(model, ids, slice_tokens, first_token)
    assert found.shape == (2, 77 - first_token)
    torch.testing.assert_close(found, expected[:, first_token - 1 :], rtol=1e-5, atol=1e-5)


def test_the_mean_beyond_the_window_leaves_out_what_is_within(make_model: MakeModel) -> None:
    model, ids = put(make_model(WINDOW)), tokens(1, 77)
    expected = token_losses(model, ids)[0, WINDOW - 1 :].double().mean()  # of tokens W ... 76
    assert mean_loss_beyond(model, ids, WINDOW) == pytest.approx(float(expected), rel=1e-6)
