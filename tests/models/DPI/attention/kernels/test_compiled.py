"""The fused kernels compile for a GPU, on any machine, to what they were measured as: no spilled registers, products on
the tensor cores, and decoding that moves no keys between threads."""

import json
import os
import subprocess
import sys
from typing import Any

from models.DPI.attention.cards import ADA
from tests.conftest import ROOT

CHUNK_FREE = {"local_window": 16, "chunk_coe": 1}
FOUR_BANDS = {"edges": [17, 40, 90], "scales": [2, 3.3, 7]}
NOISE = CHUNK_FREE | {"noise_type": "gaussian"}
SHARED_MEMORY = 227 << 10
PLAIN = (None, False)  # no soft cap, no sinks


def _compile(*cases: tuple[Any, ...]) -> list[dict[str, dict[str, int]]]:
    """For each case its kernels by name."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.DPI.attention.kernels.compiling", json.dumps(cases)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [{kernel["name"]: kernel for kernel in json.loads(line)} for line in done.stdout.splitlines()]


def test_decoding() -> None:
    plain, noise, all_keys, narrow, four_bands, gap = _compile(
        ("dpi", CHUNK_FREE, 1, 128),
        ("dpi", NOISE, 1, 128),
        ("repro_chunkllama", {}, 1, 128),
        ("dpi", CHUNK_FREE, 1, 80),
        ("multi_scale", FOUR_BANDS, 1, 128),
        ("streaming_llm", {"window_size": 40}, 1, 128),
    )
    for case in (plain, noise, all_keys, narrow, four_bands, gap):
        kernel = case["decode_kernel"]
        assert kernel["shared"] <= SHARED_MEMORY // 2  # two programs per multiprocessor
        assert kernel["stack"] <= 64
        assert kernel["products"] >= 16
    # The rotated query is stored, 8 instructions; keys that the compiler moves between layouts would take 16 more.
    assert 0 < plain["decode_kernel"]["loop_stores"] <= 12


def test_decoding_of_many_query_heads_for_each_key_head() -> None:
    behind = ("hopper", None, False)
    eight, sixteen = _compile(
        *(("dpi", CHUNK_FREE, 1, 128, *PLAIN, *behind, group) for group in (8, 16)),
    )
    assert eight["decode_kernel"]["stack"] <= 64
    assert sixteen["decode_kernel"]["stack"] <= 160


def test_prefill() -> None:
    plain, noise, wide, four_bands, gap = _compile(
        ("dpi", CHUNK_FREE, 100, 128),
        ("dpi", NOISE, 100, 128),
        ("dpi", CHUNK_FREE, 100, 256),
        ("multi_scale", FOUR_BANDS, 100, 128),
        ("streaming_llm", {"window_size": 40}, 100, 128),
    )
    for case in (plain, noise, wide, four_bands, gap):
        kernel = case["prefill_kernel"]
        assert kernel["shared"] <= SHARED_MEMORY
        assert kernel["stack"] == 0
        assert kernel["products"] >= 16
        assert case["rotate_kernel"]["stack"] == 0


def test_prefill_in_groups_of_warps() -> None:
    """The copy engine alone writes tiles: the softmax stays in registers."""
    two_bands, narrow, noise = _compile(
        ("dpi", CHUNK_FREE, 100, 128, None, False, "hopper", None, True),
        ("repro_original", {}, 100, 80, None, True, "hopper", None, True),
        ("dpi", NOISE, 100, 128, None, False, "hopper", None, True),
    )
    for case in (two_bands, narrow, noise):
        kernel = case["prefill_hopper_kernel"]
        assert kernel["shared"] <= SHARED_MEMORY
        assert kernel["stack"] <= (128 if case is noise else 64)
        assert kernel["products"] >= 32
        assert kernel["loop_stores"] == 0
        assert "prefill_kernel" not in case


def test_soft_caps_and_sinks() -> None:
    """Of Gemma 2's heads, gpt-oss's heads, and both with noise. Decoding heads of 256 spills no more than without."""
    capped, sinks, both, capped_step, plain_step, sinks_step = _compile(
        ("dpi", CHUNK_FREE, 100, 256, 50.0),
        ("dpi", CHUNK_FREE, 100, 64, None, True),
        ("dpi", NOISE, 100, 128, 50.0, True),
        ("dpi", CHUNK_FREE, 1, 256, 50.0),
        ("dpi", CHUNK_FREE, 1, 256),
        ("dpi", CHUNK_FREE, 1, 64, None, True),
    )
    for case in (capped, sinks, both):
        assert case["prefill_kernel"]["shared"] <= SHARED_MEMORY
        assert case["prefill_kernel"]["stack"] == 0
        assert case["prefill_kernel"]["products"] >= 16
    assert capped_step["decode_kernel"]["stack"] <= plain_step["decode_kernel"]["stack"]
    assert sinks_step["decode_kernel"]["stack"] <= 64
    for case in (capped_step, sinks_step):
        assert case["decode_kernel"]["shared"] <= SHARED_MEMORY // 2


def test_prefill_without_a_copy_engine() -> None:
    """Tiles are copied to shared memory ahead, 16 bytes at a time, and multiplied by the tensor cores."""
    usual, noise, wide = _compile(
        ("dpi", CHUNK_FREE, 100, 128, *PLAIN, "8.6"),
        ("dpi", NOISE, 100, 64, *PLAIN, "8.9"),
        ("repro_original", {}, 100, 256, *PLAIN, "8.0"),
    )
    for case in (usual, noise, wide):
        kernel = case["prefill_kernel"]
        assert kernel["shared"] <= ADA.shared_memory
        assert kernel["products"] >= 16
        assert kernel["loop_copies"] >= 4
        assert case["rotate_kernel"]["stack"] == 0
    for case in (usual, noise):
        assert case["prefill_kernel"]["stack"] <= 128  # 104 on 8.6, 32 on 8.0
        assert case["prefill_kernel"]["loop_stores"] == 0  # weights do not pass through shared memory
    assert wide["prefill_kernel"]["stack"] <= 256


def test_decoding_without_a_copy_engine() -> None:
    plain, noise, narrow = _compile(
        ("dpi", CHUNK_FREE, 1, 128, *PLAIN, "8.6"),
        ("dpi", NOISE, 1, 64, *PLAIN, "8.0"),
        ("repro_original", {}, 1, 80, *PLAIN, "8.9"),
    )
    for case in (plain, noise, narrow):
        kernel = case["decode_kernel"]
        assert kernel["shared"] <= ADA.shared_memory // 2  # two programs per multiprocessor
        assert kernel["stack"] <= 64
        assert kernel["products"] >= 16
        assert kernel["loop_copies"] >= 8
    assert 0 < plain["decode_kernel"]["loop_stores"] <= 12  # as in `test_decoding`


def test_decoding_of_partly_rotary_heads() -> None:
    """Of GPT-NeoX, whose quarter of a head begins at no multiple of 16 bytes, and of Phi-4-mini."""
    quarter, three_quarters = _compile(
        ("dpi", CHUNK_FREE, 1, 96, *PLAIN, "hopper", 24),
        ("dpi", CHUNK_FREE, 1, 128, *PLAIN, "hopper", 96),
    )
    for case in (quarter, three_quarters):
        kernel = case["decode_kernel"]
        assert kernel["shared"] <= SHARED_MEMORY // 2
        assert kernel["stack"] <= 64
        assert kernel["products"] >= 16
