"""What stands in the place of CPU_ATTN, the one backend that vLLM takes on a CPU: GALI's where it is on, else the stock
one. vLLM keeps what it found by the backend that was asked for, which is CUSTOM in engines with GALI alone.
"""

from typing import Any

from vllm_gali.settings import current_settings


def __getattr__(name: str) -> Any:
    if name != "Backend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if current_settings() is None:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        return CPUAttentionBackend
    from vllm_gali.backend import GaliCpuBackend

    return GaliCpuBackend
