"""What the plug-in uses of GALI: from the installed package `gali`, or from a checkout on the path."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.DPI.attention import sdpa
    from models.DPI.attention import triton as fused
    from models.DPI.attention.bands import Band, Plan, Row, Segment
    from models.DPI.methods import Method, Rope, build_method
    from models.DPI.methods.base import frequencies_of
    from models.DPI.served import Served, params_of
    from models.mistakes import complaints
else:
    try:
        from gali.models.DPI.attention import sdpa
        from gali.models.DPI.attention import triton as fused
        from gali.models.DPI.attention.bands import Band, Plan, Row, Segment
        from gali.models.DPI.methods import Method, Rope, build_method
        from gali.models.DPI.methods.base import frequencies_of
        from gali.models.DPI.served import Served, params_of
        from gali.models.mistakes import complaints
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gali":
            raise
        try:
            from models.DPI.attention import sdpa
            from models.DPI.attention import triton as fused
            from models.DPI.attention.bands import Band, Plan, Row, Segment
            from models.DPI.methods import Method, Rope, build_method
            from models.DPI.methods.base import frequencies_of
            from models.DPI.served import Served, params_of
            from models.mistakes import complaints
        except ModuleNotFoundError as missing:
            if (missing.name or "").partition(".")[0] != "models":
                raise
            raise ModuleNotFoundError(
                "vllm_gali finds no GALI: install it ('pip install .' in its checkout), or put the checkout on "
                "PYTHONPATH",
                name=missing.name,
            ) from None

__all__ = [
    "Band",
    "Method",
    "Plan",
    "Rope",
    "Row",
    "Segment",
    "Served",
    "build_method",
    "complaints",
    "frequencies_of",
    "fused",
    "params_of",
    "sdpa",
]
