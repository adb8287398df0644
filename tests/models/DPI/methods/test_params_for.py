"""What each method takes of its own for a window and a target, worked out by hand from what its docstring says."""

from typing import Any

import pytest

from models.DPI.methods import METHODS, build_method


@pytest.mark.parametrize(
    ("name", "window", "target", "wanted"),
    [
        ("repro_original", 4096, 16384, {}),
        ("repro_ntk", 4096, 16384, {"factor": 4}),
        ("repro_yarn", 4096, 6144, {"factor": 1.5}),
        ("repro_se", 8192, 16384, {"group_size": 3, "window_size": 4096}),
        ("repro_se", 8192, 32768, {"group_size": 5, "window_size": 2048}),
        ("repro_se", 8192, 16385, {"group_size": 4, "window_size": 4096}),
        # D(6144) = 2048 + 4096 / 2 leaves 4096 positions for 10240 distances, then for 26624.
        ("multi_scale", 8192, 16384, {"edges": [2048, 6144], "scales": [2, 3]}),
        ("multi_scale", 8192, 32768, {"edges": [2048, 6144], "scales": [2, 7]}),
        ("multi_scale", 3, 5, {"edges": [1, 2], "scales": [2, 2]}),
        ("dpe", 8192, 8192, {"scales": [1] * 8, "window_size": 1024}),
        ("dpe", 4096, 16384, {"scales": [8] * 4 + [4] * 4, "window_size": 512}),
        ("dpe", 4096, 16385, {"scales": [10] * 4 + [5] * 4, "window_size": 512}),
        ("dpe", 8, 16, {"scales": [4] * 4 + [2] * 4, "window_size": 1}),
        ("string", 8192, 12288, {"shift": 4224, "local_window": 128}),
        ("string", 8192, 8192, {"shift": 2703, "local_window": 128}),
        ("string", 8, 10, {"shift": 3, "local_window": 1}),
        ("string", 64, 1000, {"shift": 64, "local_window": 8}),
    ],
)
def test_params_for(name: str, window: int, target: int, wanted: dict[str, Any]) -> None:
    assert METHODS[name].params_for(window, target) == wanted


def test_a_scale_is_at_most_a_milliard() -> None:
    build_method("dpe", {"scales": [1_000_000_000]})
    with pytest.raises(ValueError, match="must be at most 1000000000"):
        build_method("dpe", {"scales": [1_000_000_001]})
