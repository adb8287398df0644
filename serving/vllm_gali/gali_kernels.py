"""What the kernels for the paged cache share with those of GALI for contiguous keys. Importing it imports Triton."""

from typing import TYPE_CHECKING

from vllm_gali.gali import fused

if TYPE_CHECKING or fused.__name__.startswith("models."):
    from models.DPI.attention.kernels import prefill
    from models.DPI.attention.kernels.decode_arithmetic import (
        accumulate,
        load_row,
        merge,
        merge_warps,
        rotate,
        rotate_back,
        score,
    )
    from models.DPI.attention.kernels.launching import on, power_of_2
    from models.DPI.attention.kernels.pieces import DECODE_KEYS, MOST_TILES, count_multiprocessors, cycle_step_of
    from models.DPI.attention.kernels.softmax import softcap_factors
    from models.DPI.attention.kernels.tiles import KEY_BYTES
    from models.DPI.attention.prepared import Launch
    from models.DPI.attention.tables import CACHED_KEYS
else:
    from gali.models.DPI.attention.kernels import prefill
    from gali.models.DPI.attention.kernels.decode_arithmetic import (
        accumulate,
        load_row,
        merge,
        merge_warps,
        rotate,
        rotate_back,
        score,
    )
    from gali.models.DPI.attention.kernels.launching import on, power_of_2
    from gali.models.DPI.attention.kernels.pieces import (
        DECODE_KEYS,
        MOST_TILES,
        count_multiprocessors,
        cycle_step_of,
    )
    from gali.models.DPI.attention.kernels.softmax import softcap_factors
    from gali.models.DPI.attention.kernels.tiles import KEY_BYTES
    from gali.models.DPI.attention.prepared import Launch
    from gali.models.DPI.attention.tables import CACHED_KEYS

__all__ = [
    "CACHED_KEYS",
    "DECODE_KEYS",
    "KEY_BYTES",
    "MOST_TILES",
    "Launch",
    "accumulate",
    "count_multiprocessors",
    "cycle_step_of",
    "load_row",
    "merge",
    "merge_warps",
    "on",
    "power_of_2",
    "prefill",
    "rotate",
    "rotate_back",
    "score",
    "softcap_factors",
]
