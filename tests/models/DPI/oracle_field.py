"""Distances of the methods from outside the paper, from each one's formula: a part of `oracle`."""

import itertools
import math
from fractions import Fraction
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

Number = int | float | Fraction
NAMES = (
    "pi",
    "rerope",
    "leaky_rerope",
    "string",
    "dpe",
    "streaming_llm",
    "lampe",
    "mrrope",
    "tailspline",
    "multi_scale",
)


def distances(m: Any, window: int, past: int, length: int, frequencies: int) -> tuple[Tensor, Tensor]:
    """(T, N, frequencies) fp64, of queries past ... length - 1 and keys 0 ... length - 1, and what is seen, (T, N)."""
    upper = torch.zeros(length - past, length, frequencies, dtype=torch.float64)
    seen = torch.zeros(length - past, length, dtype=torch.bool)
    groups = [f * len(m.scales) // frequencies for f in range(frequencies)] if m.name == "dpe" else [0] * frequencies
    for i, j in itertools.product(range(past, length), range(length)):
        if j <= i and (m.name != "streaming_llm" or j < m.sinks or i - j < m.window_size):
            seen[i - past, j] = True
            found = {group: float(_distance(m, window, i, j, length, group)) for group in set(groups)}
            upper[i - past, j] = torch.tensor([found[group] for group in groups], dtype=torch.float64)
    return upper, seen


def _distance(m: Any, window: int, i: int, j: int, n: int, group: int) -> Number:
    d = i - j
    match m.name:
        case "pi":
            return d / Fraction(m.factor)
        case "rerope":
            return min(d, m.window_size)
        case "leaky_rerope":
            w, f = m.window_size, Fraction(m.factor)
            return d if d < w else (i + w * (f - 1)) / f - j / f
        case "string":
            if type(m.shift) is float and n <= window:
                return d
            shift = m.shift if type(m.shift) is int else math.floor(m.shift * n)
            return d if d <= shift else d - shift + m.local_window
        case "dpe":
            w, s = m.window_size, m.scales[group]
            return d if d < w else math.floor(i / s) - math.floor(j / s) + w - w / Fraction(s)
        case "streaming_llm":
            in_sinks = j < m.sinks
            cache = m.sinks + m.window_size
            return min(i, cache - 1) - j if in_sinks else d
        case "lampe":
            h = m.local_window
            if n <= window or d <= h:
                return d
            r = Fraction(_positions(m, window, n), n - 1)
            return math.floor(i * r) + h - math.floor(h * r) - 1 - math.floor(j * r)
        case "multi_scale":
            shown = Fraction(0)
            for low, high, scale in zip((0, *m.edges), (*m.edges, math.inf), (1, *m.scales), strict=True):
                if d < high:
                    return shown + (d - low) / Fraction(scale)
                shown += (int(high) - low) / Fraction(scale)
    return d  # mrrope, tailspline


def _positions(m: Any, window: int, n: int) -> int:
    fits = {4096: (8.673e-5, -0.648, 2489.1), 131072: (4.505e-5, -2.7886, 82358.5)}
    scaled = (1.0493e-4 * 8192 / window, -2.4666, 6204.4 * window / 8192)
    a, b, limit = m.curve or fits.get(window, scaled)
    return math.floor(limit / (1 + math.exp(-(a * n + b))))


def inv_freq(m: Any, window: int, d: int, theta: float, length: int = 0) -> Tensor:
    """(d/2,) fp64: the frequencies that a method rotates n = `length` tokens at, the model's or its own."""
    if m.name in ("repro_ntk", "repro_dynamic_ntk"):
        factor = m.factor if m.name == "repro_ntk" else max(1.0, m.factor * length / window - m.factor + 1)
        theta = theta * factor ** (d / (d - 2))
    own = [theta ** (-2 * i / d) for i in range(d // 2)]
    if m.name not in ("repro_yarn", "mrrope", "tailspline"):
        return torch.tensor(own, dtype=torch.float64)
    # As YaRN: the dimension that turns b times within W, from theta ** (-2 i / d) * W = 2 pi b.
    low, high = (d / 2 * math.log(window / (2 * math.pi * turns), theta) for turns in (32, 1))
    low, high = max(math.floor(low), 0), min(math.ceil(high), d - 1)
    n = high - low
    found = []
    for i, frequency in enumerate(own):
        if m.name == "repro_yarn":
            share = Fraction(min(max(i - low, 0), n), n) if n > 0 else Fraction(i > low)
            found.append(frequency / m.factor * float(share) + frequency * float(1 - share))
            continue
        q = min(max(i - low, 0), n)
        if n <= 0:
            e = Fraction(i > low)
        elif m.name == "tailspline":
            e = Fraction(q * (3 * n * n + 3 * n + 1 - q * q), n * (n + 1) * (2 * n + 1))
        else:
            e = Fraction(q * (q + 1), n * (n + 1)) if m.variant == "pro" else Fraction(q, n)
        found.append(frequency * m.factor ** -float(e))
    return torch.tensor(found, dtype=torch.float64)


@st.composite
def params(draw: st.DrawFn, name: str, window: int) -> dict[str, Any]:
    """Parameters that a window of four tokens or more allows."""
    factor = draw(st.sampled_from([1.0, 1.5, 4.0, 7.3]))
    scale = st.one_of(st.integers(1, 9), st.floats(1, 9))
    match name:
        case "rerope":
            return {"window_size": draw(st.integers(1, window - 1))}
        case "leaky_rerope":
            return {"window_size": draw(st.integers(1, window - 1)), "factor": factor}
        case "string":
            w = draw(st.integers(1, window - 1))
            shares = st.floats((w + 1.01) / window, 0.99) if w < window - 2 else st.nothing()
            return {"local_window": w, "shift": draw(st.one_of(st.integers(w + 1, window), shares))}
        case "dpe":
            scales = draw(st.lists(scale, min_size=1, max_size=9))
            return {"scales": scales, "window_size": draw(st.integers(1, window - 1))}
        case "streaming_llm":
            sinks = draw(st.integers(0, window - 1))
            return {"sinks": sinks, "window_size": draw(st.integers(1, window - sinks))}
        case "lampe":
            h = draw(st.integers(1, window - 1))
            return {"local_window": h, "curve": (draw(st.floats(1e-4, 0.2)), -1.5, draw(st.floats(1, window - h)))}
        case "multi_scale":
            edges = sorted(draw(st.sets(st.integers(1, window - 1), min_size=1, max_size=5)))
            return {"edges": edges, "scales": sorted(draw(scale) for _ in edges)}
        case "mrrope":
            return {"factor": factor, "variant": draw(st.sampled_from(["pro", "uni"]))}
    return {"factor": factor}
