"""What a step's metadata is made from. The rest of the backend is tested through engines."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.vllm


def test_lengths_are_read_from_the_cpu() -> None:
    """A tensor without memory stands for one on a GPU: reading it fails."""
    from vllm_gali import backend

    device = torch.empty(4, dtype=torch.int32, device="meta")
    step = SimpleNamespace(seq_lens=device, seq_lens_cpu_upper_bound=torch.tensor([7, 9, 1, 0]), num_reqs=3)
    assert backend._lengths_of(step) == [7, 9, 1]
    step = SimpleNamespace(seq_lens=torch.tensor([5, 3]), seq_lens_cpu_upper_bound=None, num_reqs=2)
    assert backend._lengths_of(step) == [5, 3]
