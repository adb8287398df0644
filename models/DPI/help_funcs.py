"""Positions and interpolation of GALI, under the names that the paper's README gives (its sections 3.1 to 3.3)."""

import torch
from torch import Tensor


def get_chunk_size_list(length: int, window: int, chunk_coe: int | float, past: int = 0) -> list[int]:
    """Sizes of the query chunks that tokens past ... length - 1 are cut into.

    The first chunk reaches to the window's end. Then an int `chunk_coe` gives chunks of that many tokens, a float
    int(tokens so far * chunk_coe), at least 1. The last is as long as what is left. With past = 0 this is the
    paper's list for a prompt; with past = length - 1, a generated token, one chunk.
    """
    sizes = []
    done = past
    while done < length:
        if done < window:
            size = window - done
        elif isinstance(chunk_coe, int):
            size = chunk_coe
        else:
            size = max(1, int(done * chunk_coe))
        sizes.append(min(size, length - done))
        done += sizes[-1]
    return sizes


def chunk_ends(length: int, window: int, chunk_coe: int | float, past: int = 0) -> Tensor:
    """Where the chunk of each of tokens past ... length - 1 ends, (length - past,) int64. See `get_chunk_size_list`."""
    if isinstance(chunk_coe, float):
        sizes = torch.tensor(get_chunk_size_list(length, window, chunk_coe, past))
        return (past + sizes.cumsum(0)).repeat_interleave(sizes)
    index = torch.arange(past, length)
    first = max(past, window)  # where chunks of `chunk_coe` begin
    ends = first + torch.div(index - first, chunk_coe, rounding_mode="floor").add_(1).mul_(chunk_coe)
    return ends.masked_fill_(index < window, window).clamp_(max=length)


def squeeze(length: Tensor, window: int, local_window: int) -> tuple[Tensor, Tensor]:
    """How far the head of n tokens is squeezed, and how long it is.

    length: int64 tensor of n. Returns s, the divisor of the head's positions, and H, the number of tokens in the
    head, n - (W - k); s = 1 and H = 0 where n <= W.
    """
    s = _ceil_div(length - local_window, window - local_window)
    beyond = length > window
    s = torch.where(beyond, s, 1)
    first_tail_position = _ceil_div(length - window, (s - 1).clamp(min=1))  # k
    return s, torch.where(beyond, length - window + first_tail_position, 0)


def construct_new_pi(length: int, window: int, local_window: int) -> Tensor:
    """GALI's positions of `length` tokens, (length,) fp32: j/s in the head, the integers k ... W - 1 in the tail.

    For length <= window, 0 ... length - 1.
    """
    s, head = squeeze(torch.tensor(length), window, local_window)
    index = torch.arange(length)
    tail = index - (length - window if length > window else 0)
    return torch.where(index < head, index.double() / s, tail.double()).float()


def attention_score_approximate(score_at_ceil: Tensor, score_at_floor: Tensor, key_positions: Tensor) -> Tensor:
    """The paper's interpolated score (equations 4 to 6): (1 - w_j) score_at_ceil + w_j score_at_floor.

    score_at_ceil, score_at_floor: (..., N), scores of queries with keys at ceil(p_j) and at floor(p_j), both integer
    distances from the query at ceil(p_i). key_positions: p_j, (N,) or broadcastable; w_j = ceil(p_j) - p_j.
    Returns (..., N). The attention kernels get the same from one score, by a blended key (`attention/tables.py`).
    """
    weight = key_positions.ceil() - key_positions
    return (1 - weight) * score_at_ceil + weight * score_at_floor


def _ceil_div(a: Tensor, b: Tensor | int) -> Tensor:
    return -(-a // b)
