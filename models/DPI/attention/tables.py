"""Rotary tables: the cosines and sines of queries and keys, fp32, from positions and frequencies.

Angles are formed in fp64, because at position 131,071 an fp32 product is off by up to 0.004 rad; the tables are
fp32. Half tables are kept, (N, rotary_dim/2), since both halves of a head rotate by the same angle.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Keys whose tables are kept per set of frequencies, 1 GiB at 64 frequencies. GALI uses two tables at a time; chunk-free
# prefill passes through one for each s in every layer, at 131,072 tokens and W = 8,192 over 1.4 million keys in all.
CACHED_KEYS = 1 << 21
# Tables grow in steps of this many keys, so that decoding rebuilds one only once in so many tokens.
_GROWTH = 1024


Stretch = int | float


@dataclass(frozen=True)
class KeyPositions:
    """Positions of keys as a function of their index j alone: j * times / stretch, floored or not, or (j mod period).

    stretch: one number, or one for each frequency, (rotary_dim/2). Floors of whole numbers are exact.
    blend: the paper's interpolation of logits, moved into the key: it is (1 - w) R(ceil p) k + w R(floor p) k.
    """

    stretch: Stretch | tuple[Stretch, ...] = 1
    floor: bool = False
    period: int = 0
    blend: bool = False
    times: int = 1

    def __call__(self, index: Tensor) -> Tensor:
        """Positions fp64 of indices (N,) int64: (N,), or (N, rotary_dim/2) where frequencies have their own stretch."""
        if self.period:
            index = index % self.period
        index = index * self.times
        if isinstance(self.stretch, tuple):
            each = {stretch: self._divided(index, stretch) for stretch in set(self.stretch)}
            return torch.stack([each[stretch] for stretch in self.stretch], dim=-1)
        return self._divided(index, self.stretch)

    def _divided(self, index: Tensor, stretch: Stretch) -> Tensor:
        if not self.floor:
            return index.double() / stretch
        return (index // stretch).double() if isinstance(stretch, int) else (index.double() / stretch).floor()

    @property
    def cycle(self) -> int:
        """The fewest keys c such that p(a + b) = p(a) + p(b) wherever c divides a; 0 where there are none."""
        if self.period:
            return int(self.period == 1)  # all keys at 0
        if not self.floor and not self.blend:
            return 1
        stretches = self.stretch if isinstance(self.stretch, tuple) else (self.stretch,)
        whole = [stretch for stretch in stretches if isinstance(stretch, int)]
        if len(whole) < len(stretches):
            return 0
        return math.lcm(*(stretch // math.gcd(stretch, self.times) for stretch in whole))


class Frequencies:
    """Rotary frequencies of one model and method, and the key tables built from them.

    inv_freq: (rotary_dim/2,) fp32, radians per position.
    """

    def __init__(self, inv_freq: Tensor) -> None:
        """No table is built yet."""
        self.inv_freq = inv_freq.detach().float().cpu()
        # In the order of their use. A plain dictionary: threads may be in here at the same time.
        self._tables: dict[tuple[KeyPositions, torch.device], tuple[Tensor, Tensor]] = {}

    @property
    def rotary_dim(self) -> int:
        """Components of a head that rotate."""
        return 2 * self.inv_freq.numel()

    def tables(
        self, positions: Tensor, device: torch.device, blend: bool = False, scale: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each (N, rotary_dim/2) fp32 on `device`, of positions (N,) or (N, rotary_dim/2).

        blend: mix the tables at ceil and floor with weight w = ceil(p) - p on the floor.
        scale: factor on both, a number or (N,).
        """
        compute_device = torch.device("cpu") if device.type == "mps" else device  # no fp64 on MPS
        p = positions.to(compute_device, torch.float64)
        p = p if p.ndim == 2 else p[:, None]
        inv_freq = self.inv_freq.to(compute_device, torch.float64)
        if blend:
            upper, lower = p.ceil(), p.floor()
            w = upper - p
            angle_upper, angle_lower = upper * inv_freq, lower * inv_freq
            cos = (1 - w) * angle_upper.cos() + w * angle_lower.cos()
            sin = (1 - w) * angle_upper.sin() + w * angle_lower.sin()
        else:
            angle = p * inv_freq
            cos, sin = angle.cos(), angle.sin()
        if isinstance(scale, Tensor):
            scale = scale.to(compute_device, torch.float64)[:, None]
        return (cos * scale).float().to(device), (sin * scale).float().to(device)

    def key_tables(self, positions: KeyPositions, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tables of keys 0 ... length - 1, each (length, rotary_dim/2) fp32; kept for the next call."""
        slot = (positions, device)
        found = self._tables.pop(slot, None)
        if found is None or found[0].shape[0] < length:
            capacity = -(-length // _GROWTH) * _GROWTH
            with torch.inference_mode(False):  # a pass with gradients may read them after one in inference mode
                index = torch.arange(capacity, device="cpu" if device.type == "mps" else device)
                found = self.tables(positions(index), device, blend=positions.blend)
            self._make_room(capacity)
        self._tables[slot] = found
        cos, sin = found
        return cos[:length], sin[:length]

    def _make_room(self, keys: int) -> None:
        """Let go of the tables that were used least recently, all but one, until there is room for so many keys."""
        kept = list(self._tables.items())  # other threads may change the original
        total = keys + sum(cos.shape[0] for _, (cos, _) in kept)
        for slot, (cos, _) in kept[:-1]:
            if total <= CACHED_KEYS:
                return
            self._tables.pop(slot, None)
            total -= cos.shape[0]


@dataclass(frozen=True)
class KeyTable:
    """Which table rotates keys: equal to another only with the very same `Frequencies` and equal positions."""

    frequencies: Frequencies
    positions: KeyPositions

    def of_keys(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of keys 0 ... length - 1, each (length, rotary_dim/2) fp32."""
        return self.frequencies.key_tables(self.positions, length, device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, rest: float | Tensor = 1.0) -> Tensor:
    """Rotate the first 2 * cos.shape[-1] components of x; compute in fp32 (fp64 for fp64), return x's dtype.

    x: (..., N, head_dim), cos and sin: (N, rotary_dim/2). rest: factor on the other components, a number or (N, 1).
    """
    half = cos.shape[-1]
    work = torch.promote_types(x.dtype, torch.float32)
    cos, sin = cos.to(work), sin.to(work)
    first, second = x[..., :half].to(work), x[..., half : 2 * half].to(work)
    rotated = torch.empty_like(x)
    rotated[..., :half] = first * cos - second * sin
    rotated[..., half : 2 * half] = second * cos + first * sin
    rotated[..., 2 * half :] = x[..., 2 * half :] * rest
    return rotated
