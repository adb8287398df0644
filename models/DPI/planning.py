"""From a batch and a method to the plan of one forward pass: which tokens of each row are real, and their bands."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from models.DPI.attention.bands import Plan, Row
from models.DPI.methods import Method, Rope


@dataclass(frozen=True)
class Padding:
    """The real tokens of a batch.

    spans: for each row (left, length), its tokens left ... left + length - 1 on the key axis; None: all of them.
    past: tokens in the cache. new: tokens of this pass.
    """

    spans: tuple[tuple[int, int], ...] | None
    past: int
    new: int
    batch_size: int = 1

    @classmethod
    def read(
        cls,
        attention_mask: Tensor | None,
        batch_size: int,
        past: int,
        new: int,
        position_ids: Tensor | None = None,
    ) -> "Padding":
        """From a 2D mask (B, past + new), true or 1 where a token is real.

        position_ids: (B or 1, new), if the caller has any; a method makes its own positions, so they may only say what
        the mask says. Raises ValueError if the mask is too short, one with padding has not as many rows as the batch, a
        row's real tokens are not one run, there is none, or the positions do not count them.
        """
        if position_ids is not None and not _is_one_per_row(position_ids, batch_size, new):
            raise ValueError(
                f"position_ids has the shape {tuple(position_ids.shape)}; it must be ({batch_size} or 1, {new})"
            )
        if attention_mask is not None and attention_mask.shape[1] < past + new:
            raise ValueError(
                f"attention_mask covers {attention_mask.shape[1]} tokens, fewer than the {past} in the cache and the "
                f"{new} of this pass; give one that covers both"
            )
        if attention_mask is None or bool(attention_mask[:, : past + new].all()):
            if position_ids is not None:
                _check_offsets(_offsets(None, past, position_ids), [0])
            return cls(None, past, new, batch_size)
        if len(attention_mask) != batch_size:
            raise ValueError(
                f"attention_mask has {len(attention_mask)} row(s) for a batch of {batch_size}; give one for each"
            )
        mask = attention_mask[:, : past + new] != 0
        index = torch.arange(past + new, device=mask.device)
        read = [torch.where(mask, index, past + new).amin(1), torch.where(mask, index, -1).amax(1), mask.sum(1)]
        if position_ids is not None and new == 1:
            offset = (position_ids[:, 0] - past).to(mask.device)
            read.append(torch.where(mask[:, past], offset, 0))
        left, last, lengths, *offsets = torch.stack(read).tolist()  # one synchronisation for all
        for row, (first, end, length) in enumerate(zip(left, last, lengths, strict=True)):
            if length == 0:
                raise ValueError(
                    f"attention_mask has no real token in row {row} up to token {mask.shape[1] - 1}; leave the row "
                    "out, or let prefill_chunk_size be larger than a row's padding"
                )
            if end + 1 - first != length:
                raise ValueError(
                    f"attention_mask has a hole in row {row} (tokens {first} ... {end}, {length} of them real); "
                    "pad on the left or on the right only"
                )
        if position_ids is not None:
            _check_offsets(2 * offsets or _offsets(mask, past, position_ids), left)
        return cls(tuple(zip(left, lengths, strict=True)), past, new, batch_size)

    def following(self) -> "Padding":
        """With one more real token in every row, which is fed next."""
        spans = None if self.spans is None else tuple((left, length + 1) for left, length in self.spans)
        return Padding(spans, self.past + self.new, 1, self.batch_size)

    def rows(self) -> dict[tuple[int, int], list[int]]:
        """Rows of the batch by their span."""
        if self.spans is None:
            return {(0, self.past + self.new): list(range(self.batch_size))}
        found = defaultdict(list)
        for row, span in enumerate(self.spans):
            found[span].append(row)
        return dict(found)

    def key_positions(self, device: torch.device) -> Tensor:
        """Position of each key within its row, (B or 1, N) int64; 0 for padding on the left."""
        index = torch.arange(self.past + self.new, device=device)
        if self.spans is None:
            return index[None]
        left = torch.tensor([left for left, _ in self.spans], device=device)
        return (index[None] - left[:, None]).clamp(min=0)


def _is_one_per_row(position_ids: Tensor, batch_size: int, new: int) -> bool:
    return position_ids.ndim == 2 and position_ids.shape[1] == new and len(position_ids) in (1, batch_size)


def _offsets(mask: Tensor | None, past: int, position_ids: Tensor) -> list[list[int]]:
    """How far positions are from the tokens' indices at least and at most, two lists of B or 1.

    mask: (B, past + new), whose padding may have any position; 0 in rows of padding alone. None: all tokens are real.
    """
    new = position_ids.shape[1]
    if mask is None and new == 1:  # decoding waits for each of a GPU's kernels
        found = [position - past for (position,) in position_ids.tolist()]
        return [found, found]
    offset = position_ids - torch.arange(past, past + new, device=position_ids.device)
    if mask is None:
        return torch.stack(offset.aminmax(dim=1)).tolist()
    hidden = ~mask[:, past:].to(offset.device)
    offset = offset.expand(len(hidden), new)
    most = torch.iinfo(offset.dtype).max
    least = offset.masked_fill(hidden, most).amin(1)
    largest = offset.masked_fill(hidden, -most).amax(1)
    nothing = hidden.all(1)
    return torch.stack((least.masked_fill(nothing, 0), largest.masked_fill(nothing, 0))).tolist()


def _check_offsets(offsets: list[list[int]], left: list[int]) -> None:
    """Raise ValueError unless a row's positions count its tokens, with or without the padding before them."""
    for row, (least, most) in enumerate(zip(*offsets, strict=True)):
        padding = left[row] if row < len(left) else left[0]
        if least != most:
            raise ValueError(
                f"position_ids of row {row} do not count its tokens one by one (packed or skipped): methods need one "
                "sequence per row; give attention_mask for padding"
            )
        if least not in (0, -padding):
            raise ValueError(
                f"position_ids of row {row} are {least} away from the tokens' indices; methods make their own "
                "positions, leave position_ids out"
            )


def make_plan(method: Method, rope: Rope, padding: Padding, seed: int) -> Plan:
    """The bands of every row. Rows of equal span share them."""
    rows = []
    plain = True
    for (left, length), members in padding.rows().items():
        first_query = max(left - padding.past, 0)
        past = max(padding.past - left, 0)
        plain = plain and method.is_plain(rope, length)
        if past < length:  # a row whose padding is on the right may have no real query in this pass
            segments = tuple(method.segments(rope, past, length))
            rows.append(Row(tuple(members), left, length, first_query, segments))
    return Plan(tuple(rows), noise=method.noise(seed), plain=plain)
