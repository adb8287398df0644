"""Every method once more, from its definition and without bands: what the tests compare with.

Positions are exact fractions found by search, logits are complex rotations in fp64 in the paper's two-logit form,
and every (query, key) pair is written out. Slow and plain on purpose; it shares no code with what it checks.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from models.DPI.attention.bands import EVERY_KEY, Segment
from models.DPI.methods import METHODS, Method, Rope

THETA = 10_000.0


@dataclass
class Terms:
    """The logit of query i and key j is (1 - weight) f(upper) + weight f(lower), times scale; all (T, N) fp64.

    upper, lower: distances at which the logit is taken. interpolated: where w_j is not 0.
    """

    upper: Tensor
    lower: Tensor
    weight: Tensor
    scale: float = 1.0

    @property
    def interpolated(self) -> Tensor:
        return self.weight != 0


def chunk_ends(length: int, window: int, chunk_coe: int | float, past: int = 0) -> list[int]:
    """n of each query past ... length - 1: where its chunk ends."""
    ends: list[int] = []
    done = past
    while done < length:
        if done < window:
            end = window
        elif type(chunk_coe) is int:
            end = done + chunk_coe
        else:
            end = done + max(1, math.floor(done * chunk_coe))
        end = min(end, length)
        ends += [end] * (end - done)
        done = end
    return ends


def squeeze(n: int, window: int, local_window: int) -> tuple[int, int]:
    """(s, k) by search: the smallest divisor whose head fits, then the longest tail.

    A head of n - (W - k) tokens at j/s must end at or before k, and the tail keeps at least local_window integers.
    """
    s = 2
    while True:
        for k in range(1, window - local_window + 1):
            if Fraction(n - (window - k), s) <= k:
                return s, k
        s += 1


def gali_positions(n: int, window: int, local_window: int) -> list[Fraction]:
    """Positions of n tokens."""
    if n <= window:
        return [Fraction(j) for j in range(n)]
    s, k = squeeze(n, window, local_window)
    head = n - (window - k)
    return [Fraction(j, s) for j in range(head)] + [Fraction(p) for p in range(k, window)]


def terms(method: Method, window: int, past: int, length: int) -> Terms:
    """Distances of queries past ... length - 1 to keys 0 ... length - 1, from the table of the methods."""
    m: Any = method
    upper, lower = torch.zeros(2, length - past, length, dtype=torch.float64)
    weight = torch.zeros_like(upper)
    scale = 1.0
    if m.name == "dpi":
        ends = chunk_ends(length, window, m.chunk_coe, past)
        known = {n: gali_positions(n, window, m.local_window) for n in set(ends)}
    if m.name == "repro_chunkllama":
        local = window // 16 if m.local_window is None else m.local_window
        c = 3 * window // 4 - local
        if length > window:
            scale = (m.mscale * math.log(length / window) + 1) ** 2
    if m.name == "repro_yarn":
        scale = (0.1 * math.log(m.factor) + 1) ** 2
    for i in range(past, length):
        for j in range(i + 1):
            high = low = Fraction(i - j)
            w = Fraction(0)
            if m.name == "dpi":
                p = known[ends[i - past]]
                if m.appro_attn:
                    w = math.ceil(p[j]) - p[j]
                    high = Fraction(math.ceil(p[i]) - math.ceil(p[j]))
                    low = Fraction(math.ceil(p[i]) - math.floor(p[j]))
                else:
                    high = low = p[i] - p[j]
            elif m.name == "repro_se" and i - j >= m.window_size:
                g, near = m.group_size, m.window_size
                high = low = Fraction(i // g + near - near // g - j // g)
            elif m.name == "repro_chunkllama":
                own, other = i // c, j // c
                if own == other:
                    query = i % c
                elif own == other + 1:
                    query = min(i % c + c, 3 * window // 4)
                else:
                    query = min(2 * c - 1, 3 * window // 4)
                high = low = Fraction(query - j % c)
            upper[i - past, j], lower[i - past, j], weight[i - past, j] = float(high), float(low), float(w)
    return Terms(upper, lower, weight, scale)


def terms_of_bands(segments: list[Segment], past: int, length: int) -> tuple[Terms, Tensor, Tensor]:
    """What bands say, pair by pair.

    Returns the terms, how many bands cover each pair, and which pairs get noise. Scales must be the same everywhere.
    """
    upper, lower = torch.zeros(2, length - past, length, dtype=torch.float64)
    weight, scale = torch.zeros_like(upper), torch.zeros_like(upper)
    count = torch.zeros(length - past, length, dtype=torch.int64)
    noisy = torch.zeros(length - past, length, dtype=torch.bool)
    for segment in segments:
        for band in segment.bands:
            assert band.start.shape == band.stop.shape == (segment.last - segment.first,)
            assert band.start.dtype == band.stop.dtype == torch.int64
            assert band.start.device.type == "cpu"
            assert (band.start.diff() >= 0).all(), "a boundary falls"
            assert (band.stop.diff() >= 0).all(), "a boundary falls"
            keys = band.keys(torch.arange(length))
            for t in range(segment.last - segment.first):
                row = segment.first + t - past
                for j in range(int(band.start[t]), int(band.stop[t])):
                    assert 0 <= j <= segment.first + t, "a key that is not there, or not yet"
                    query, key = float(band.query_positions[t]), float(keys[j])
                    count[row, j] += 1
                    blend = band.keys.blend
                    upper[row, j] = query - (math.ceil(key) if blend else key)
                    lower[row, j] = query - (math.floor(key) if blend else key)
                    weight[row, j] = math.ceil(key) - key if blend else 0.0
                    scale[row, j] = float(band.query_scale)
                    if band.noise_period is not None and segment.noise_std is not None:
                        noisy[row, j] = band.noise_period == EVERY_KEY or j % band.noise_period != 0
    covered = scale[count > 0]
    assert (covered == covered[0]).all()
    return Terms(upper, lower, weight, float(covered[0])), count, noisy


def causal_mask(past: int, length: int) -> Tensor:
    """(T, N) bool: query past + t sees keys up to itself."""
    return torch.arange(length)[None] <= torch.arange(past, length)[:, None]


def assert_same_terms(found: Terms, expected: Terms) -> None:
    """Equal distances where they count: the lower one only where it has a weight."""
    torch.testing.assert_close(found.upper, expected.upper, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.weight, expected.weight, rtol=0, atol=1e-9)
    used = expected.weight > 0
    torch.testing.assert_close(found.lower[used], expected.lower[used], rtol=0, atol=1e-9)
    assert math.isclose(found.scale, expected.scale, rel_tol=1e-12)


def logits(q: Tensor, k: Tensor, inv_freq: Tensor, t: Terms, scaling: float) -> Tensor:
    """(B, H, T, D) and (B, Hkv, N, D), un-rotated -> (B, H, T, N) complex128 arithmetic, fp64 result."""
    q, k = q.double(), k.double()
    half, d = inv_freq.numel(), q.shape[-1]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    rest = torch.einsum("bhtd,bhnd->bhtn", q[..., 2 * half :], k[..., 2 * half :]) if d > 2 * half else 0.0
    zq = torch.complex(q[..., :half], q[..., half : 2 * half])
    zk = torch.complex(k[..., :half], k[..., half : 2 * half])
    product = torch.einsum("bhtf,bhnf->bhtnf", zq, zk.conj())

    def at(distance: Tensor) -> Tensor:
        angle = distance[..., None] * inv_freq.double()
        return (product * torch.polar(torch.ones_like(angle), angle)).sum(-1).real

    rotated = (1 - t.weight) * at(t.upper) + t.weight * at(t.lower)
    return (rotated * t.scale + rest) * scaling


def with_noise(
    found: Tensor, method: Method, t: Terms, deviates: Tensor, window: int, past: int, length: int
) -> Tensor:
    """Logits (B, H, T, N) with GALI's noise. deviates: (H, T, N), of unit scale."""
    m: Any = method
    ends = chunk_ends(length, window, m.chunk_coe, past)
    rows = []
    for row, (i, n) in enumerate(zip(range(past, length), ends, strict=True)):
        sees = found[:, :, row, : i + 1]
        if n > window:
            sigma = m.std_base * (i - torch.arange(i + 1.0)) / n if m.scale_std else torch.ones(i + 1)
            add = deviates[:, row, : i + 1] * sigma
            if m.noise_type == "gaussian" and m.scale_mean:
                add = add + sees.mean(-1, keepdim=True)
            if m.noise_type == "uniform" and m.scale_max:
                add = add * sees.amax(-1, keepdim=True)
            noisy = t.interpolated[row, : i + 1] if m.addon_relcoef else torch.ones(i + 1, dtype=torch.bool)
            sees = sees + add * noisy
        rows.append(torch.cat((sees, found[:, :, row, i + 1 :]), dim=-1))
    return torch.stack(rows, dim=2)


def attend(found: Tensor, v: Tensor, sinks: Tensor | None = None) -> Tensor:
    """One softmax over all keys that a query sees: logits (B, H, T, N), values (B, Hkv, N, D) -> (B, H, T, D) fp64.

    sinks: (H,), terms of the denominator alone.
    """
    length = v.shape[2]
    seen = causal_mask(length - found.shape[2], length)
    weights = found.double().exp() * seen
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + sinks.double().exp()[None, :, None, None]
    p = weights / total
    return p @ v.double().repeat_interleave(found.shape[1] // v.shape[1], dim=1)


def attention(q: Tensor, k: Tensor, v: Tensor, inv_freq: Tensor, t: Terms, scaling: float) -> Tensor:
    """Attention without noise, (B, H, T, D) fp64."""
    return attend(logits(q, k, inv_freq, t, scaling), v)


def rope(window: int, rotary_dim: int = 8, theta: float = THETA) -> Rope:
    """A plain rotary scheme."""
    inv_freq = torch.tensor([theta ** (-2 * f / rotary_dim) for f in range(rotary_dim // 2)], dtype=torch.float64)
    return Rope(inv_freq=inv_freq.float(), window=window, theta=theta)


def inv_freq_of(segments: list[Segment]) -> Tensor:
    """The frequencies of the first band."""
    return segments[0].bands[0].frequencies.inv_freq


@st.composite
def dpi_params(draw: st.DrawFn, window: int) -> dict[str, Any]:
    """Parameters of GALI that a window allows."""
    return {
        "chunk_coe": draw(st.one_of(st.integers(1, 40), st.floats(0.01, 1.5))),
        "local_window": draw(st.integers(1, window - 1)),
        "appro_attn": draw(st.booleans()),
    }


@st.composite
def setups(draw: st.DrawFn, name: str | None = None, max_length: int = 90) -> tuple[Method, int, int, int]:
    """(method, window, past, length): any method with parameters that its window allows."""
    window = draw(st.integers(4, 33))
    length = draw(st.integers(1, max_length))
    past = draw(st.one_of(st.just(0), st.integers(0, length - 1), st.just(length - 1)))
    name = name or draw(st.sampled_from(sorted(METHODS)))
    params: dict[str, Any] = {}
    if name == "dpi":
        params = draw(dpi_params(window))
    elif name == "repro_se":
        params = {"group_size": draw(st.integers(1, 7)), "window_size": draw(st.integers(1, window - 1))}
    elif name == "repro_chunkllama":
        local = draw(st.one_of(st.none(), st.integers(1, 3 * window // 4 - 1)))
        params = {"local_window": local, "mscale": draw(st.sampled_from([0.0, 0.05, 0.1]))}
    elif name != "repro_original":
        params = {"factor": draw(st.sampled_from([1.0, 1.5, 4.0, 8.0]))}
    return METHODS[name](**params), window, past, length
