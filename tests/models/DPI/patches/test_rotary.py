"""Rotary schemes: which of them have one set of frequencies, and what methods that change frequencies make of them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.DPI.methods import METHODS, build_method
from models.DPI.patches.Llama import check_config, install, installation_of, uninstall
from tests.models.DPI.helpers import CHUNKS, PARAMS, ROUNDING, WINDOW, in_pieces, logits, padded, put, tokens
from tests.models.DPI.patches.test_families import MIXED, make

THETA, D, S = 10_000.0, 12, 4.0
SCHEMES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": S},
    "llama3": {
        "factor": S,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 2000,
    },
    "yarn": {"factor": S, "original_max_position_embeddings": 200},
    "dynamic": {"factor": S},
    "proportional": {"partial_rotary_factor": 0.5},
    "longrope": {
        "short_factor": [1.0, 1.1, 1.2, 1.5, 2.0, 3.0],
        "long_factor": [2.0] * 6,
        "original_max_position_embeddings": WINDOW,
        "factor": S,
    },
}
CHANGES_FREQUENCIES = ("repro_ntk", "repro_dynamic_ntk", "repro_yarn")


def _rope(rope_type: str, theta: float = THETA) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": theta} | SCHEMES[rope_type]


def _model(rope_type: str, theta: float = THETA, **options: Any) -> PreTrainedModel:
    return make("llama", rope_parameters=_rope(rope_type, theta), **options)


def _frequencies(rope_type: str, theta: float) -> Tensor:
    """From the formulas in `methods.ntk`, in fp64."""
    f = torch.tensor([theta ** (-2 * i / D) for i in range(D // 2)], dtype=torch.float64)
    options = SCHEMES[rope_type]
    length = options.get("original_max_position_embeddings")
    if rope_type == "linear":
        return f / S
    if rope_type == "llama3":
        low, high = options["low_freq_factor"], options["high_freq_factor"]
        turns = length * f / (2 * math.pi)
        t = (turns - low) / (high - low)
        return torch.where(turns < low, f / S, torch.where(turns > high, f, (1 - t) * f / S + t * f))
    if rope_type == "yarn":
        first, last = (D * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (32, 1))
        first, last = max(math.floor(first), 0), min(math.ceil(last), D - 1)
        ramp = ((torch.arange(D // 2) - first) / (last - first)).clamp(0, 1)
        return f / S * ramp + f * (1 - ramp)
    return f


def _scaling(rope_type: str) -> float:
    return 0.1 * math.log(S) + 1 if rope_type == "yarn" else 1.0


@pytest.mark.parametrize("rope_type", ["default", "linear", "llama3", "yarn", "dynamic"])
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_ntk_is_the_schemes_formula_at_another_base(rope_type: str, factor: float) -> None:
    """Frequencies by hand, logits of the stock model with that base."""
    theta = THETA * factor ** (D / (D - 2))
    model = put(_model(rope_type), "repro_ntk", {"factor": factor})
    installation = installation_of(model)
    assert installation is not None
    (segment,) = installation.method.segments(installation.rope, 0, 50)
    (band,) = segment.bands
    torch.testing.assert_close(band.frequencies.inv_freq.double(), _frequencies(rope_type, theta), rtol=2e-6, atol=0)
    assert band.query_scale == pytest.approx(_scaling(rope_type) ** 2)
    # The dynamic scheme is the default one here: its own would grow beyond the window.
    stock = _model("default" if rope_type == "dynamic" else rope_type, theta)
    ids, mask = padded([77, 40])
    torch.testing.assert_close(
        logits(model, ids, attention_mask=mask)[mask.bool()],
        logits(stock, ids, attention_mask=mask)[mask.bool()],
        rtol=0,
        atol=ROUNDING,
    )
    torch.testing.assert_close(
        in_pieces(model, ids[:1], [0, 30, 50, 51, 77]), logits(stock, ids[:1]), rtol=0, atol=ROUNDING
    )


@pytest.mark.parametrize("rope_type", ["default", "linear", "llama3", "yarn", "dynamic"])
@pytest.mark.parametrize("length", [20, 50, 77])
def test_dynamic_ntk_is_the_schemes_formula_at_the_base_of_the_length(rope_type: str, length: int) -> None:
    factor = 3.0
    grown = max(factor * length / WINDOW - factor + 1, 1.0)
    theta = THETA * grown ** (D / (D - 2))
    stock = _model("default" if rope_type == "dynamic" else rope_type, theta)
    model = put(_model(rope_type), "repro_dynamic_ntk", {"factor": factor})
    ids = tokens(2, length)
    torch.testing.assert_close(logits(model, ids), logits(stock, ids), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("window", [WINDOW, 200])
def test_yarn_on_a_linear_scheme(window: int) -> None:
    """The frequencies f_0 theta^(-2i/d) with f_0 = 1/s, and the ramp between dimensions of 32 turns and of one."""
    factor = 3.0
    model = put(_model("linear"), "repro_yarn", {"factor": factor}, window=window)
    installation = installation_of(model)
    assert installation is not None
    (segment,) = installation.method.segments(installation.rope, 0, 50)
    (band,) = segment.bands
    own = _frequencies("linear", THETA)
    turns = window / S / (2 * math.pi)
    first, last = (D * math.log(turns / wanted) / (2 * math.log(THETA)) for wanted in (32, 1))
    first, last = max(math.floor(first), 0), min(math.ceil(last), D - 1)
    ramp = ((torch.arange(D // 2) - first) / max(last - first, 0.001)).clamp(0, 1)
    expected = own / factor * ramp + own * (1 - ramp)
    torch.testing.assert_close(band.frequencies.inv_freq.double(), expected, rtol=2e-6, atol=0)
    assert band.query_scale == pytest.approx((0.1 * math.log(factor) + 1) ** 2)


@pytest.mark.parametrize("rope_type", ["linear", "llama3", "yarn", "proportional"])
def test_static_schemes_are_the_stock_models(rope_type: str) -> None:
    """At any length, by a method with nothing to change; within the window to the bit by one that has."""
    model = _model(rope_type)
    ids, mask = padded([77, 40])
    whole, within = logits(model, ids, attention_mask=mask)[mask.bool()], logits(model, ids[:, -WINDOW:])
    put(model, "repro_se", {"group_size": 1, "window_size": 9})
    torch.testing.assert_close(logits(model, ids, attention_mask=mask)[mask.bool()], whole, rtol=0, atol=ROUNDING)
    put(model, "dpi", CHUNKS)
    assert torch.equal(logits(model, ids[:, -WINDOW:]), within)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "repro_original"])
def test_a_dynamic_scheme_is_the_default_one_up_to_its_length(name: str) -> None:
    """Whatever the stock model has read before."""
    model, default = _model("dynamic"), _model("default")
    ids = tokens(2, 77)
    assert not torch.equal(logits(model, ids), logits(default, ids))  # leaves frequencies of 77 tokens behind
    put(model, name)
    put(default, name)
    for length in (WINDOW, 77, 20):
        assert torch.equal(logits(model, ids[:, :length]), logits(default, ids[:, :length]))
    assert torch.equal(in_pieces(model, ids, [0, 30, 50, 51, 77]), in_pieces(default, ids, [0, 30, 50, 51, 77]))
    uninstall(model)
    fresh = _model("dynamic")
    assert torch.equal(logits(model, ids), logits(fresh, ids))


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_longrope_has_its_short_factors_up_to_the_original_length(model_type: str) -> None:
    """Within it the method is the stock model to the bit; beyond, it is one whose short factors never end."""
    shape: dict[str, Any] = {"max_position_embeddings": 512, "partial_rotary_factor": 1.0}
    model = make(model_type, **shape, original_max_position_embeddings=WINDOW, rope_parameters=_rope("longrope"))
    endless = _rope("longrope") | {
        "original_max_position_embeddings": 512,
        "attention_factor": math.sqrt(1 + math.log(S) / math.log(WINDOW)),
    }
    short = make(model_type, **shape, original_max_position_embeddings=512, rope_parameters=endless)
    short.load_state_dict(model.state_dict())
    ids, mask = padded([77, 40])
    within, beyond = logits(model, ids[:, :WINDOW]), logits(model, ids)
    put(model, "dpi", CHUNKS)
    assert torch.equal(logits(model, ids[:, :WINDOW]), within)
    put(model, "repro_se", {"group_size": 1, "window_size": 9})
    found = logits(model, ids, attention_mask=mask)[mask.bool()]
    torch.testing.assert_close(found, logits(short, ids, attention_mask=mask)[mask.bool()], rtol=0, atol=ROUNDING)
    assert float((beyond - logits(short, ids)).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("rope_type", "window", "said"),
    [
        ("dynamic", WINDOW + 1, r"max_position_embeddings = 32, and the window is 33; give a window .* at most 32"),
        ("longrope", WINDOW + 1, r"original_max_position_embeddings = 32, and the window is 33; give a window"),
    ],
)
def test_no_window_beyond_what_is_static(rope_type: str, window: int, said: str) -> None:
    model = _model(rope_type)
    with pytest.raises(ValueError, match=rf"rope_type = '{rope_type}', whose frequencies change beyond {said}"):
        install(model, build_method("dpi", CHUNKS), window)
    install(model, build_method("dpi", CHUNKS), WINDOW)


@pytest.mark.parametrize(
    ("name", "rope_type"),
    [
        *(("repro_yarn", rope_type) for rope_type in ("llama3", "yarn", "proportional", "longrope")),
        *(
            (name, rope_type)
            for name in ("repro_ntk", "repro_dynamic_ntk")
            for rope_type in ("proportional", "longrope")
        ),
        *(("repro_original", rope_type) for rope_type in ("dynamic", "longrope")),
    ],
)
def test_methods_without_a_formula_for_a_scheme(name: str, rope_type: str) -> None:
    model = _model(rope_type)
    with pytest.raises(ValueError, match=rf"'{name}' is not defined for .* rope_type = '{rope_type}': \w.+; take"):
        put(model, name)


def test_a_scheme_that_nobody_knows() -> None:
    config = _model("default").config
    config.rope_parameters["rope_type"] = "axial"
    with pytest.raises(ValueError, match=r"rope_type = 'axial'; supported are default, linear, llama3, yarn, prop"):
        check_config(config, build_method("dpi", CHUNKS))


def test_kinds_of_layers_have_a_scheme_each() -> None:
    """A full layer's may be dynamic within its length, a local layer's may not: it goes on beyond the window."""
    full = {"full_attention": _rope("dynamic"), "sliding_attention": _rope("default", 100.0)}
    default = full | {"full_attention": _rope("default")}
    model, other = (make("gemma3_text", layer_types=MIXED, rope_parameters=rope) for rope in (full, default))
    put(model)
    put(other)
    assert torch.equal(logits(model, tokens(1, 77)), logits(other, tokens(1, 77)))
    local = {"full_attention": _rope("default"), "sliding_attention": _rope("dynamic")}
    with pytest.raises(ValueError, match=r"attend locally have rope_type = 'dynamic'"):
        put(make("gemma3_text", layer_types=MIXED, rope_parameters=local))


@pytest.mark.parametrize("name", ["repro_ntk", "dpi"])
def test_gpt_oss_with_its_yarn(name: str) -> None:
    """Whose ramp is not cut to whole dimensions."""
    rope = _rope("yarn") | {"truncate": False}
    model = make("gpt_oss", rope_parameters=rope)
    ids = tokens(2, 77)
    stock = logits(model, ids)
    nothing = {"repro_ntk": ("repro_ntk", {"factor": 1.0}), "dpi": ("repro_se", {"group_size": 1, "window_size": 9})}
    put(model, *nothing[name])
    torch.testing.assert_close(logits(model, ids), stock, rtol=0, atol=ROUNDING)
    put(model, name, PARAMS[name])
    assert float((logits(model, ids) - stock).abs().max()) > 0.01
