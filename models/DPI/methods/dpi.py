"""GALI (`dpi`): the tail keeps its positions, the head is squeezed just enough, and logits there are interpolated.

Paper sections 3.1-3.3. Two bands, a boundary for each query: tail keys at their true index with the query at its own,
head keys at j/s through blended tables with the query at its squeezed position. A segment is the queries that share
s, and with it the head's table; only the boundary between the bands moves from chunk to chunk.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.DPI.attention.bands import EVERY_KEY, Band, Segment
from models.DPI.attention.noise import Noise
from models.DPI.attention.tables import KeyPositions
from models.DPI.help_funcs import chunk_ends, squeeze
from models.DPI.methods.base import (
    MAX_TOKENS,
    TRUE_POSITIONS,
    Rope,
    Tokens,
    UnboundedMethod,
    check_smaller,
    one_band,
    query_indices,
)

Flag = Annotated[int, Field(ge=0, le=1)]


class DPI(UnboundedMethod):
    """Parameters of GALI.

    chunk_coe: tokens of a query chunk (int), or its share of the tokens so far (float). 1 (int): chunk-free, every
        token has the positions that generating it would give.
    local_window: tokens at the end of the input that keep integer positions at least.
    appro_attn: interpolate logits; False: fractional rotation of queries and keys, without noise.
    noise_type, scale_mean, scale_std, scale_max: the noise on logits, see `Noise`.
    std_base: its deviation is std_base * (i - j) / n where scale_std = 1, else 1.
    addon_relcoef: 1, only interpolated logits get noise; 0, all of them.
    use_chunk_softmax: accepted for the paper's configurations; it never changed a result.
    """

    name: ClassVar[str] = "dpi"
    label: ClassVar[str] = "GALI"
    colour: ClassVar[str] = "#D55E00"
    marker: ClassVar[str] = "o"
    in_paper: ClassVar[bool] = True
    plain_within_window: ClassVar[bool] = True

    chunk_coe: int | float = Field(default=3000, gt=0, le=MAX_TOKENS)
    local_window: Tokens = 128
    appro_attn: bool = True
    use_chunk_softmax: bool = False
    noise_type: Literal["no", "gaussian", "uniform"] = "no"
    addon_relcoef: Flag = 1
    std_base: float = Field(default=1.0, ge=0.0, le=1e6)
    scale_mean: Flag = 0
    scale_std: Flag = 1
    scale_max: Flag = 1

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """The recommended ones, see README: every token a chunk of its own, a quarter of the window at integers."""
        return {"chunk_coe": 1, "local_window": max(1, window // 4)}

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """Chunk-free with a local window of W/4, W/8 and W/2, and in chunks shorter than the tail."""
        free = [{"chunk_coe": 1, "local_window": max(1, window // part)} for part in (4, 8, 2)]
        return [*free, {"chunk_coe": max(2, window // 16), "local_window": max(1, window // 4)}]

    @classmethod
    def tuning_windows(cls, window: int) -> list[int]:
        """Retrieval gains from a smaller window, at a small cost in loss."""
        return list(dict.fromkeys(max(2, window * quarters // 4) for quarters in (4, 3, 2)))

    @classmethod
    def automatic(cls, window: int) -> dict[str, int]:
        """Every token a chunk of its own, half of the window at integers."""
        return {"chunk_coe": 1, "local_window": max(1, window // 2)}

    @model_validator(mode="after")
    def _noise_has_a_deviation(self) -> Self:
        if self.noise_type == "gaussian" and self.scale_mean and self.scale_std and self.std_base == 0:
            raise ValueError(
                "std_base = 0 with scale_mean = 1 would add the mean of a row's logits and no noise; "
                "give std_base > 0, or noise_type = 'no'"
            )
        return self

    def check_window(self, window: int) -> None:
        """The local window must leave room for a head."""
        check_smaller("local_window", self.local_window, window)

    def tempered_from(self, rope: Rope) -> int:
        """Beyond the window: what a token gets does not depend on those after it."""
        return rope.window

    def is_causal(self) -> bool:
        """Where every query is a chunk of its own."""
        return isinstance(self.chunk_coe, int) and self.chunk_coe == 1

    def noise(self, seed: int) -> Noise | None:
        """Noise belongs to interpolated logits."""
        if self.noise_type == "no" or not self.appro_attn:
            return None
        return Noise(
            kind=self.noise_type,
            scale_std=bool(self.scale_std),
            scale_mean=bool(self.scale_mean),
            scale_max=bool(self.scale_max),
            seed=seed,
        )

    def layout(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """One segment for each s among the queries; s = 1 within the window."""
        if length <= rope.window:
            return one_band(rope, rope.frequencies, past, length)
        end = chunk_ends(length, rope.window, self.chunk_coe, past)  # n of each query: where its chunk ends
        s, head = squeeze(end, rope.window, self.local_window)
        i = query_indices(past, length)
        # A token that is decoded is one query: nothing changes.
        changes = (torch.nonzero(s[1:] != s[:-1]).flatten() + 1).tolist() if len(i) > 1 else []
        segments = []
        for first, last in zip([0, *changes], [*changes, len(i)], strict=True):
            at = slice(first, last)
            if s[first] == 1:
                segments += one_band(rope, rope.frequencies, past + first, past + last)
            else:
                segments.append(self._segment(rope, i[at], end[at], int(s[first]), head[at]))
        return segments

    def _segment(self, rope: Rope, i: Tensor, end: Tensor, s: int, head: Tensor) -> Segment:
        """Two bands: head keys, j < H, and tail keys.

        i: (T,) queries; end, head: (T,), n and H of each query's chunk. A query that lies in the head itself, in a
        chunk longer than the tail, sits at ceil(i / s) (appro_attn) or i / s, and sees no tail.
        """
        in_head = i < head
        squeezed = -(-i // s) if self.appro_attn else i.double() / s
        positions = torch.where(in_head, squeezed, rope.window - end + i).double()
        boundary = torch.minimum(head, i + 1)
        scale = rope.scaling**2
        keys = KeyPositions(stretch=s, blend=self.appro_attn)
        # w_j, the weight of the interpolation, is not 0 for keys of the head that s does not divide.
        head_noise, tail_noise = (s, None) if self.addon_relcoef else (EVERY_KEY, EVERY_KEY)
        bands = (
            Band(rope.frequencies, positions, keys, i * 0, boundary, scale, head_noise),
            Band(rope.frequencies, i.double(), TRUE_POSITIONS, boundary, i + 1, scale, tail_noise),
        )
        return Segment(int(i[0]), int(i[-1]) + 1, bands, noise_std=self._noise_std(end))

    def _noise_std(self, end: Tensor) -> Tensor | None:
        """(T,) fp32: std_base / n where the deviation grows with distance, else 1."""
        if self.noise_type == "no" or not self.appro_attn:
            return None
        return self.std_base / end.float() if self.scale_std else torch.ones(len(end))
