"""The methods from outside the paper: dense attention by each one's formula, and what must be equal where."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.DPI.attention import api, reference
from models.DPI.methods import METHODS, build_method
from models.DPI.methods.base import YARN_OF_TWO, Rope
from models.DPI.planning import Padding, make_plan
from tests.models.DPI import oracle, oracle_field
from tests.models.DPI.helpers import PARAMS

W, D, THETA = 64, 24, 500.0  # of 12 frequencies, some turn less than once within W and some more than 32 times
SCALING = 0.3
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((name, METHODS[name].params_for(W, 150)) for name in oracle_field.NAMES),
    ("mrrope", {"factor": 3.0, "variant": "uni"}),
    ("string", {"shift": 0.4, "local_window": 9}),
    ("dpe", {"scales": [5, 2.5, 7], "window_size": 13}),
    ("streaming_llm", {"sinks": 0, "window_size": 30}),
    ("multi_scale", {"edges": [7], "scales": [3.3]}),
    ("repro_se", {"group_size": 2.7, "window_size": 20}),
    ("rerope", {"window_size": 20, "temperature": "yarn"}),
    ("pi", {"factor": 3.0, "temperature": "logn"}),
    ("dpi", {"chunk_coe": 1, "local_window": 20, "temperature": 1.2}),
    ("repro_original", {"temperature": "logn"}),
]


def tensors(length: int, queries: int, d: int = D) -> tuple[Tensor, Tensor, Tensor]:
    """fp32 queries, keys and values of two rows."""
    generator = torch.Generator().manual_seed(length)
    q, k, v = (
        torch.randn(2, heads, n, d, generator=generator) for heads, n in ((4, queries), (2, length), (2, length))
    )
    return q, k, v


def attended(name: str, params: dict[str, Any], rope: Rope, q: Tensor, k: Tensor, v: Tensor, impl: str) -> Tensor:
    """Through the API, as a model's layers do."""
    method = build_method(name, params, rope.window)
    padding = Padding(None, k.shape[2] - q.shape[2], q.shape[2], 2)
    return api.attend(q, k, v, make_plan(method, rope, padding, seed=0), scaling=SCALING, impl=impl)[0]


@pytest.mark.parametrize(("name", "params"), SETTINGS, ids=[f"{name}-{params}" for name, params in SETTINGS])
@pytest.mark.parametrize("impl", ["sdpa", "reference"])
@pytest.mark.parametrize(("length", "queries"), [(150, 150), (131, 1), (141, 30), (49, 49)])
def test_dense_attention_by_the_formula(
    name: str, params: dict[str, Any], impl: str, length: int, queries: int
) -> None:
    """Prefill, a decoded token, a piece, and an input within the window; frequencies are the formula's too."""
    method = build_method(name, params, W)
    q, k, v = tensors(length, queries)
    terms = oracle.terms(method, W, length - queries, length, D // 2)
    inv_freq = oracle_field.inv_freq(method, W, D, THETA)
    expected = oracle.attention(q, k, v, inv_freq, terms, SCALING)
    found = attended(name, params, oracle.rope(W, D, THETA), q, k, v, impl)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


def test_the_settings_hold_every_method() -> None:
    assert {name for name, _ in SETTINGS} >= {name for name, method in METHODS.items() if not method.in_paper}
    assert set(oracle_field.NAMES) == {name for name, method in METHODS.items() if not method.in_paper}


EQUAL: list[tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = [
    (("pi", {"factor": 1}), ("repro_original", {})),
    (("mrrope", {"factor": 1}), ("repro_original", {})),
    (("tailspline", {"factor": 1.0}), ("repro_original", {})),
    (("leaky_rerope", {"factor": 1, "window_size": 20}), ("repro_original", {"temperature": "logn"})),
    (("rerope", {"window_size": 20}), ("leaky_rerope", {"window_size": 20, "factor": 1e8})),
    (
        ("leaky_rerope", {"factor": 3.5, "window_size": 20, "temperature": "none"}),
        ("multi_scale", {"edges": [20], "scales": [3.5]}),
    ),
    (("multi_scale", {"edges": [9, 30], "scales": [1, 1]}), ("repro_original", {})),
    (("multi_scale", {"edges": [9, 30], "scales": [3, 3]}), ("multi_scale", {"edges": [9], "scales": [3]})),
    (("dpe", {"scales": [3, 3, 3], "window_size": 21}), ("repro_se", {"group_size": 3, "window_size": 21})),
    (("dpe", {"scales": [1], "window_size": 21}), ("repro_original", {})),
    (("repro_se", {"group_size": 3.0, "window_size": 20}), ("repro_se", {"group_size": 3, "window_size": 20})),
    (("repro_yarn", {"factor": 2.0}), ("repro_yarn", {"factor": 2.0, "temperature": YARN_OF_TWO})),
    (("pi", {"factor": 2.0, "temperature": "yarn"}), ("pi", {"factor": 2.0, "temperature": YARN_OF_TWO})),
]


@pytest.mark.parametrize(("one", "other"), EQUAL, ids=str)
def test_methods_that_are_the_same(one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> None:
    rope = oracle.rope(W, D, THETA)
    q, k, v = tensors(150, 150)
    found, expected = (attended(*setting, rope, q, k, v, "sdpa") for setting in (one, other))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_streaming_llm_is_attention_within_its_cache() -> None:
    """For each query: the cache's keys alone, at positions 0, 1, 2 ... of the cache, as in its authors' code."""
    rope, sinks, w, n = oracle.rope(W, D, THETA), 3, 11, 50
    q, k, v = tensors(n, n)
    found = attended("streaming_llm", {"sinks": sinks, "window_size": w}, rope, q, k, v, "sdpa")
    for i in range(n):
        kept = sorted({*range(min(sinks, i + 1)), *range(max(0, i - w + 1), i + 1)})
        cache = [x[:, :, kept] for x in (k, v)]
        alone = attended("repro_original", {}, rope, q[:, :, i : i + 1], *cache, "reference")
        torch.testing.assert_close(found[:, :, i : i + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["string", "lampe"])
def test_a_diagonal_counts_once(name: str) -> None:
    """The keys' weights sum to one, with the diagonal on the border in the first region: its distance is true."""
    params: dict[str, Any] = {"string": {"shift": 30, "local_window": 5}, "lampe": {"local_window": 8}}[name]
    edge = params.get("shift", params["local_window"])
    method = build_method(name, params, W)
    _, count, _ = oracle.terms_of_bands(method.segments(oracle.rope(W), 0, 100), 0, 100)
    assert torch.equal(count, oracle.causal_mask(0, 100).long())
    found, _, _ = oracle.terms_of_bands(method.segments(oracle.rope(W), 99, 100), 99, 100)
    assert found.upper[0, 99 - edge, 0] == edge
    assert found.upper[0, 99 - edge - 1, 0] <= edge


@pytest.mark.parametrize("variant", ["pro", "uni", "tailspline"])
def test_slowed_frequencies_run_from_their_own_to_the_slowest(variant: str) -> None:
    """Fast ones stay, slow ones are divided by the factor, those between fall ever further behind."""
    name, more = ("tailspline", {}) if variant == "tailspline" else ("mrrope", {"variant": variant})
    rope = oracle.rope(8192, 64, 100_000.0)
    method = build_method(name, {"factor": 8.0, **more})
    slowed = rope.inv_freq / oracle.inv_freq_of(method.segments(rope, 0, 5))
    assert slowed[0] == pytest.approx(1, rel=1e-6)
    assert slowed[-1] == pytest.approx(8, rel=1e-5)
    assert (slowed.diff() >= -1e-5).all()
    expected = oracle_field.inv_freq(method, 8192, 64, 100_000.0)
    torch.testing.assert_close(oracle.inv_freq_of(method.segments(rope, 0, 5)).double(), expected, rtol=2e-6, atol=0)


def test_pro_is_behind_uni_and_tailspline_ahead() -> None:
    """In between, Pro slows least, TailSpline most."""
    rope = oracle.rope(8192, 64, 100_000.0)
    settings = (("mrrope", {}), ("mrrope", {"variant": "uni"}), ("tailspline", {}))
    pro, uni, tail = (
        oracle.inv_freq_of(build_method(name, {"factor": 8.0, **more}).segments(rope, 0, 5)) for name, more in settings
    )
    assert (pro >= uni * (1 - 1e-6)).all()
    assert (uni >= tail * (1 - 1e-6)).all()
    assert ((pro > uni * 1.01) & (uni > tail * 1.01)).any()


@pytest.mark.parametrize("temperature", ["logn", "yarn", 1.3])
@pytest.mark.parametrize("name", ["repro_original", "rerope", "dpi"])
def test_a_temperature_on_partly_rotary_heads(name: str, temperature: str | float) -> None:
    """logn and numbers scale all of a logit; YaRN's scales cosines and sines, and with them what rotates."""
    params = PARAMS[name] | {"temperature": temperature}
    rope = oracle.rope(32, 8)
    q, k, v = tensors(90, 90, d=14)
    method = build_method(name, params, 32)
    expected = oracle.attention(q, k, v, rope.inv_freq, oracle.terms(method, 32, 0, 90, 4), SCALING)
    for impl in ("sdpa", "reference"):
        torch.testing.assert_close(attended(name, params, rope, q, k, v, impl).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("temperature", ["logn", "yarn", 1.3])
def test_a_temperature_keeps_chunk_free_gali_causal_and_its_window_plain(temperature: str | float) -> None:
    method = build_method("dpi", {"chunk_coe": 1, "local_window": 7, "temperature": temperature}, 32)
    rope = oracle.rope(32)
    assert method.is_causal()
    assert method.is_plain(rope, 32)
    q, k, v = (x.double() for x in tensors(80, 80, 8))
    whole, _ = reference.attend(q, k, v, method.segments(rope, 0, 80), scaling=SCALING)
    for n in (20, 32, 33, 60):
        cut = (x[:, :, :n] for x in (q, k, v))
        part, _ = reference.attend(*cut, method.segments(rope, 0, n), scaling=SCALING)
        torch.testing.assert_close(part, whole[:, :, :n], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.in_paper])
def test_causal_means_that_later_tokens_change_nothing(name: str) -> None:
    method = build_method(name, PARAMS[name], 32)
    rope = oracle.rope(32)
    q, k, v = (x.double() for x in tensors(80, 80, 8))
    whole, _ = reference.attend(q, k, v, method.segments(rope, 0, 80), scaling=SCALING)
    part, _ = reference.attend(*(x[:, :, :50] for x in (q, k, v)), method.segments(rope, 0, 50), scaling=SCALING)
    assert torch.allclose(part, whole[:, :, :50], rtol=0, atol=1e-6) == method.is_causal()


REFUSED: list[tuple[str, dict[str, Any], int, int, str]] = [
    ("pi", {"factor": 2.5}, 160, 64, "factor of at least 2.516"),
    ("mrrope", {"factor": 2.5}, 160, 64, "factor of at least 2.516"),
    ("tailspline", {"factor": 2.5}, 160, 64, "factor of at least 2.516"),
    ("leaky_rerope", {"factor": 2.5, "window_size": 16}, 136, 64, "factor of at least 2.521"),
    ("string", {"shift": 30, "local_window": 9}, 85, 64, "set shift = 31"),
    ("string", {"shift": 64, "local_window": 9}, 119, 64, "no shift reaches more than 119"),
    ("string", {"shift": 0.33, "local_window": 9}, 82, 64, "set shift = 28"),
    ("dpe", {"scales": [2, 3], "window_size": 16}, 160, 64, "give a group 4 at least"),
    ("multi_scale", {"edges": [16, 32], "scales": [2, 3]}, 152, 64, "set the last scale to at least 3.025"),
    ("repro_se", {"group_size": 2.5, "window_size": 16}, 136, 64, "as group_size = 3 does"),
]


@pytest.mark.parametrize(("name", "params", "reach", "window", "remedy"), REFUSED, ids=str)
def test_a_target_out_of_reach_is_refused(
    name: str, params: dict[str, Any], reach: int, window: int, remedy: str
) -> None:
    build_method(name, params, window, reach)
    with pytest.raises(ValueError, match=rf"{name}.* reaches {reach} tokens .* {reach + 1}; .*{remedy}"):
        build_method(name, params, window, reach + 1)


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("rerope", {"window_size": 64}, "window_size = 64 must be smaller"),
        ("leaky_rerope", {"window_size": 64, "factor": 2}, "window_size = 64 must be smaller"),
        ("dpe", {"scales": [2], "window_size": 64}, "window_size = 64 must be smaller"),
        ("dpe", {"scales": [2]}, "window_size = 1024 must be smaller"),
        ("string", {"shift": 65}, "shift = 65, 65 tokens, must be above local_window = 128"),
        ("string", {"shift": 65, "local_window": 3}, "at most the model's window of 64"),
        ("string", {"shift": 0.33, "local_window": 30}, "shift = 0.33, 21 tokens, must be above local_window = 30"),
        ("streaming_llm", {"sinks": 4, "window_size": 61}, r"sinks \+ window_size = 65 must be at most"),
        ("lampe", {"local_window": 20}, "curve's limit 48.47"),
        ("lampe", {"local_window": 20, "curve": [0.1, 0, 0.5]}, "limit 0.5, which must be at least 1"),
        ("multi_scale", {"edges": [64], "scales": [2]}, "shown at distance 64, which must be smaller"),
        ("multi_scale", {"edges": [9, 5], "scales": [2, 3]}, r"edges = \[9, 5\] must ascend"),
        ("multi_scale", {"edges": [5, 9], "scales": [3, 2]}, r"scales = \[3, 2\] must ascend"),
        ("multi_scale", {"edges": [5, 9], "scales": [3]}, "2 edges and 1 scales"),
        ("dpe", {"scales": []}, r"scales = \[\]: must not be empty"),
        ("dpe", {"scales": [0.5]}, r"scales.0 = 0.5: must be at least 1"),
        ("dpe", {"scales": ["2"]}, r"scales.0 = '2': must be a number"),
        ("lampe", {"curve": [1.0, 2.0]}, "curve = .* has too few entries"),
        ("mrrope", {"factor": 2.0, "variant": "max"}, "variant = 'max'.*'pro' or 'uni'"),
        ("rerope", {"window_size": 9, "temperature": "log"}, "temperature = 'log'.*'none', 'yarn' or 'logn'"),
        ("repro_chunkllama", {"temperature": 0}, "temperature = 0.*greater than 0"),
        ("dpi", {"temperature": True}, "temperature = True"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(name: str, params: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        build_method(name, params, 64)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", oracle_field.NAMES)
@pytest.mark.parametrize(("window", "target"), [(512, 700), (512, 900), (8192, 16_000), (4096, 8000)])
def test_own_parameters_reach(name: str, window: int, target: int) -> None:
    build_method(name, METHODS[name].params_for(window, target), window, target)


def test_two_windows_are_out_of_strings_reach() -> None:
    with pytest.raises(ValueError, match="no shift reaches more than 16256"):
        build_method("string", METHODS["string"].params_for(8192, 16_384), 8192, 16_384)


@pytest.mark.parametrize(("window", "curve"), [(4096, 2489.1), (8192, 6204.4), (131_072, 82_358.5), (16_384, 12_408.8)])
def test_lampes_curve_is_the_papers_at_its_models_windows(window: int, curve: float) -> None:
    """Llama-3's m by hand: 6204.4 / (1 + exp(2.4666 - 1.0493e-4 n))."""
    method: Any = build_method("lampe", None, window)
    assert method._curve(window)[2] == pytest.approx(curve)
    if window == 8192:
        assert [method._positions(8192, n) for n in (8193, 16_384, 131_072)] == [1036, 1993, 6204]
