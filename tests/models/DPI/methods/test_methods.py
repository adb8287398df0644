"""Validation: each mistake is one line that names the parameter, its value and the bound."""

import math
import re
from typing import Any

import pytest

from models.DPI.methods import METHODS, build_method

MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("dpi", {"chunk_coef": 3}, r"unknown parameter 'chunk_coef'; did you mean 'chunk_coe'\? \(known: .*\)"),
    ("repro_original", {"factor": 2.0}, r"unknown parameter 'factor' \(known: none\)"),
    ("repro_se", {"group_size": 3}, r"parameter 'window_size' is missing"),
    ("repro_yarn", {}, r"parameter 'factor' is missing"),
    ("dpi", {"local_window": "128"}, r"local_window = '128'.*must be a whole number"),
    ("dpi", {"local_window": True}, r"local_window = True.*must be a whole number"),
    ("dpi", {"local_window": 128.0}, r"local_window = 128.0.*must be a whole number"),
    ("dpi", {"local_window": 0}, r"local_window = 0.*at least 1"),
    ("dpi", {"chunk_coe": 0}, r"chunk_coe = 0.*greater than 0"),
    ("dpi", {"chunk_coe": -0.5}, r"chunk_coe = -0.5.*greater than 0"),
    ("dpi", {"chunk_coe": True}, r"chunk_coe = True"),
    ("dpi", {"chunk_coe": "3000"}, r"chunk_coe = '3000'"),
    ("dpi", {"chunk_coe": math.inf}, r"chunk_coe = inf"),
    ("dpi", {"chunk_coe": math.nan}, r"chunk_coe = nan"),
    ("dpi", {"appro_attn": 1}, r"appro_attn = 1.*must be true or false"),
    ("dpi", {"noise_type": "normal"}, r"noise_type = 'normal'.*'no', 'gaussian' or 'uniform'"),
    ("dpi", {"addon_relcoef": 2}, r"addon_relcoef = 2.*at most 1"),
    ("dpi", {"addon_relcoef": "1"}, r"addon_relcoef = '1'.*must be a whole number"),
    ("dpi", {"addon_relcoef": True}, r"addon_relcoef = True.*must be a whole number"),
    ("dpi", {"std_base": -1.0}, r"std_base = -1.0.*at least 0"),
    ("dpi", {"std_base": math.inf}, r"std_base = inf.*finite"),
    ("dpi", {"std_base": 0.0, "scale_mean": 1, "noise_type": "gaussian"}, r"std_base = 0 with scale_mean = 1"),
    ("repro_se", {"group_size": 2.0, "window_size": 5}, r"group_size = 2.0.*must be a whole number"),
    ("repro_se", {"group_size": 0, "window_size": 5}, r"group_size = 0.*at least 1"),
    ("repro_chunkllama", {"mscale": "0.1"}, r"mscale = '0.1'.*must be a number"),
    ("repro_chunkllama", {"mscale": math.nan}, r"mscale = nan"),
    ("repro_ntk", {"factor": True}, r"factor = True.*must be a number"),
    ("repro_ntk", {"factor": 0.5}, r"factor = 0.5.*at least 1"),
    ("repro_yarn", {"factor": math.inf}, r"factor = inf.*finite"),
    ("dpi", {"chunk_coe": 10**30}, r"chunk_coe = 1000.*at most 1099511627776"),
    ("dpi", {"chunk_coe": 1e300}, r"chunk_coe = 1e\+300.*at most 1099511627776"),
    ("dpi", {"local_window": 10**30}, r"local_window = 1000.*at most 1099511627776"),
    ("dpi", {"std_base": 1e300}, r"std_base = 1e\+300.*at most 1000000"),
    ("repro_se", {"group_size": 10**30, "window_size": 2}, r"group_size = 1000.*at most 1099511627776"),
    ("repro_ntk", {"factor": 1e300}, r"factor = 1e\+300.*at most 1000000000"),
    ("repro_dynamic_ntk", {"factor": 1e300}, r"factor = 1e\+300.*at most 1000000000"),
    ("repro_yarn", {"factor": 1e300}, r"factor = 1e\+300.*at most 1000000000"),
    ("repro_chunkllama", {"mscale": 1e300}, r"mscale = 1e\+300.*at most 1000000"),
]


def _one_line(error: BaseException) -> str:
    message = str(error)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(("name", "params", "said"), MISTAKES, ids=[f"{m[0]}-{m[1]}" for m in MISTAKES])
def test_a_mistake_is_one_line(name: str, params: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        build_method(name, params)
    assert repr(name) in _one_line(caught.value)


def test_two_mistakes_are_both_named() -> None:
    with pytest.raises(ValueError, match=r"repro_se") as caught:
        build_method("repro_se", {"group_sise": 3, "window_size": 2.5})
    message = _one_line(caught.value)
    for part in ("group_size", "group_sise", "window_size = 2.5"):
        assert part in message


def test_an_unknown_method_gets_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match=r"method is 'repro_yarm'; it must be one of .*did you mean 'repro_yarn'\?"):
        build_method("repro_yarm", {})
    with pytest.raises(ValueError, match="must be one of dpi, "):
        build_method("xyz", {})


@pytest.mark.parametrize(
    ("name", "params", "window", "said"),
    [
        ("dpi", {"local_window": 64}, 64, "local_window = 64 must be smaller than .* 64 tokens"),
        ("repro_se", {"group_size": 2, "window_size": 64}, 64, "window_size = 64 must be smaller than .* 64 tokens"),
        ("repro_chunkllama", {"local_window": 48}, 64, "local_window = 48 must be smaller than 48"),
        ("dpi", {}, 0, "max_position_embeddings = 0 must be at least 1"),
        ("dpi", {}, -3, "max_position_embeddings = -3 must be at least 1"),
    ],
)
def test_bounds_of_the_window(name: str, params: dict[str, Any], window: int, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        build_method(name, params, window)
    _one_line(caught.value)


@pytest.mark.parametrize(
    ("name", "params", "reach", "remedy"),
    [
        ("repro_se", {"group_size": 3, "window_size": 16}, (64 - 16) * 3 + 16, "group_size = 4"),
        ("repro_ntk", {"factor": 2.5}, 160, "factor of at least 2.516"),
        ("repro_dynamic_ntk", {"factor": 2.5}, 160, "factor of at least 2.516"),
        ("repro_yarn", {"factor": 2.5}, 160, "factor of at least 2.516"),
    ],
)
def test_a_target_out_of_reach_names_the_bound(name: str, params: dict[str, Any], reach: int, remedy: str) -> None:
    build_method(name, params, 64, reach)
    with pytest.raises(ValueError, match=rf"reaches {reach} tokens .* target of {reach + 1}; .*{remedy}") as caught:
        build_method(name, params, 64, reach + 1)
    message = _one_line(caught.value)
    for parameter, value in params.items():
        assert f"{parameter} = {value}" in message


@pytest.mark.parametrize(
    ("window", "factor", "target"),
    [(3000, 1.1, 3300), (4096, 1.2, 4915), (8192, 4.0, 32768), (7, 1.4285714285714286, 10)],
)
def test_products_with_a_factor_are_not_cut_by_rounding(window: int, factor: float, target: int) -> None:
    build_method("repro_ntk", {"factor": factor}, window, target)


@pytest.mark.parametrize("target", [64, 65, 1_000_000])
def test_methods_without_a_bound(target: int) -> None:
    for name, params in (("dpi", {"local_window": 3}), ("repro_chunkllama", {}), ("repro_original", None)):
        build_method(name, params, 64, target)


@pytest.mark.parametrize("times", [1.001, 2.0, 3.3, 7.9])
def test_the_advice_of_an_error_is_good(times: float) -> None:
    """Following the remedy makes the method reach the target."""
    window, target = 512, int(512 * times) + 1
    for name in ("repro_ntk", "repro_dynamic_ntk", "repro_yarn"):
        with pytest.raises(ValueError, match=r"set a factor of at least") as caught:
            build_method(name, {"factor": 1.0}, window, target)
        advised = float(str(caught.value).rsplit(" ", 1)[1])
        build_method(name, {"factor": advised}, window, target)
    if times > 1.01:
        with pytest.raises(ValueError, match=r"must reach it") as caught:
            build_method("repro_se", {"group_size": 1, "window_size": 100}, window, target)
        advised_group = int(re.findall(r"group_size = (\d+) does", str(caught.value))[0])
        build_method("repro_se", {"group_size": advised_group, "window_size": 100}, window, target)
        if advised_group > 1:
            with pytest.raises(ValueError, match=r"must reach it"):
                build_method("repro_se", {"group_size": advised_group - 1, "window_size": 100}, window, target)


def test_methods_are_frozen_and_named() -> None:
    assert list(METHODS) == [method.name for method in METHODS.values()]
    method = build_method("repro_ntk", {"factor": 2})
    with pytest.raises(ValueError, match=r"frozen"):
        method.factor = 3.0  # type: ignore[attr-defined]
