"""What the kernels for the paged cache share with those of GALI for contiguous keys. Importing it imports Triton."""

from typing import TYPE_CHECKING

from vllm_gali.gali import fused

if TYPE_CHECKING or fused.__name__.startswith("models."):
    from models.DPI.attention.kernels import prefill
    from models.DPI.attention.kernels.decode import (
        _accumulate,
        _merge,
        _merge_warps,
        _rotate,
        _rotate_back,
        _row,
        _score,
    )
    from models.DPI.attention.kernels.launching import on, power_of_2
    from models.DPI.attention.kernels.pieces import _MOST_TILES, DECODE_KEYS, _multiprocessors, _steps
    from models.DPI.attention.kernels.softmax import softcap_factors
    from models.DPI.attention.kernels.tiles import _KEY_BYTES
    from models.DPI.attention.prepared import Launch
    from models.DPI.attention.tables import _CACHED_KEYS
else:
    from gali.models.DPI.attention.kernels import prefill
    from gali.models.DPI.attention.kernels.decode import (
        _accumulate,
        _merge,
        _merge_warps,
        _rotate,
        _rotate_back,
        _row,
        _score,
    )
    from gali.models.DPI.attention.kernels.launching import on, power_of_2
    from gali.models.DPI.attention.kernels.pieces import (
        _MOST_TILES,
        DECODE_KEYS,
        _multiprocessors,
        _steps,
    )
    from gali.models.DPI.attention.kernels.softmax import softcap_factors
    from gali.models.DPI.attention.kernels.tiles import _KEY_BYTES
    from gali.models.DPI.attention.prepared import Launch
    from gali.models.DPI.attention.tables import _CACHED_KEYS

__all__ = [
    "DECODE_KEYS",
    "_CACHED_KEYS",
    "_KEY_BYTES",
    "_MOST_TILES",
    "Launch",
    "_accumulate",
    "_merge",
    "_merge_warps",
    "_multiprocessors",
    "_rotate",
    "_rotate_back",
    "_row",
    "_score",
    "_steps",
    "on",
    "power_of_2",
    "prefill",
    "softcap_factors",
]
