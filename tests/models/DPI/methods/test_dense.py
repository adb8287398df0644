"""Every method in a padded batch, in prefill, in pieces and in decoding, against dense attention by its formula.

`test_field.py` has the methods from outside the paper alone, with more parameters.
"""

from typing import Any

import pytest
import torch

from models.DPI.attention import api
from models.DPI.methods import METHODS, build_method
from models.DPI.planning import Padding, make_plan
from tests.models.DPI import oracle, oracle_field
from tests.models.DPI.helpers import padded

W, D, THETA = 32, 24, 500.0
SCALING = 0.3
LENGTHS = [71, 45, 19]  # tokens of each row; the last fits the window
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "dpi": [
        {"chunk_coe": 1, "local_window": 7},
        {"chunk_coe": 11, "local_window": 7},
        {"chunk_coe": 0.3, "local_window": 13},
        {"chunk_coe": 9, "local_window": 7, "appro_attn": False},
    ],
    "repro_se": [{"group_size": 3, "window_size": 9}, {"group_size": 2.7, "window_size": 9}],
    "repro_chunkllama": [{"local_window": 5}, {}],
    "repro_ntk": [{"factor": 3.3}],
    "repro_dynamic_ntk": [{"factor": 3.0}],
    "repro_yarn": [{"factor": 3.0}],
    "repro_original": [{}],
    "pi": [{"factor": 3.5}],
    "rerope": [{"window_size": 9}],
    "leaky_rerope": [{"window_size": 9, "factor": 3.5}],
    "string": [{"shift": 21, "local_window": 3}, {"shift": 0.4, "local_window": 3}],
    "dpe": [{"scales": [4, 2.5, 7], "window_size": 9}],
    "streaming_llm": [{"sinks": 3, "window_size": 17}],
    "lampe": [{"local_window": 5}],
    "mrrope": [{"factor": 4.0}, {"factor": 4.0, "variant": "uni"}],
    "tailspline": [{"factor": 4.0}],
    "multi_scale": [{"edges": [6, 13, 40], "scales": [2, 3.5, 5]}],
}
CASES = [(name, params) for name, several in SETTINGS.items() for params in several]


def test_every_method_is_here() -> None:
    assert list(SETTINGS) == list(METHODS)


@pytest.mark.parametrize("temperature", [None, "none", "yarn", "logn", 1.3])
@pytest.mark.parametrize(("name", "params"), CASES, ids=str)
def test_dense_attention_by_the_formula(name: str, params: dict[str, Any], temperature: str | float | None) -> None:
    """None: the method's own temperature. Rows count their own tokens; what is padding gets 0."""
    method = build_method(name, params | ({} if temperature is None else {"temperature": temperature}), W)
    longest = max(LENGTHS)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(len(LENGTHS), heads, longest, D, generator=generator) for heads in (4, 2, 2))
    _, mask = padded(LENGTHS)
    for past in (0, 40, longest - 1):  # prefill, a piece, a token
        padding = Padding.read(mask, len(LENGTHS), past, longest - past)
        plan = make_plan(method, oracle.rope(W, D, THETA), padding, seed=0)
        expected = torch.zeros(len(LENGTHS), 4, longest - past, D, dtype=torch.float64)
        for row, length in enumerate(LENGTHS):
            left = longest - length
            mine = max(past - left, 0)
            terms = oracle.terms(method, W, mine, length, D // 2)
            frequencies = oracle_field.inv_freq(method, W, D, THETA, length)
            one = slice(row, row + 1)
            alone = q[one, :, left + mine :], k[one, :, left:], v[one, :, left:]
            expected[one, :, left + mine - past :] = oracle.attention(*alone, frequencies, terms, SCALING)
        for impl in ("sdpa", "reference", "auto"):
            found = api.attend(q[:, :, past:], k, v, plan, scaling=SCALING, impl=impl)[0]
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4, msg=lambda m, i=impl: f"{i}: {m}")
