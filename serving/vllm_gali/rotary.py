"""The rotary module of an engine with GALI: it turns nothing. In every other engine it is vLLM's own.

vLLM takes this class wherever a model asks for a plain RotaryEmbedding, in all engines of the process, so it looks at
the engine that is being built. `get_rope` keeps modules by their parameters: the mark in rope_parameters, which
`configuring` puts there, keeps those of engines with and without GALI apart.
"""

from typing import Any

from torch import Tensor
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

from vllm_gali.settings import current_settings

_NAME = RotaryEmbedding.__name__

made: set[str] = set()
"""Marks of the engines whose models have asked for such a module in this process."""


class MaybeNoRotation(RotaryEmbedding):  # type: ignore[misc]
    """RotaryEmbedding, or where GALI is on a module that leaves queries and keys as they are."""

    def __init__(
        self,
        head_size: int,
        rotary_dim: int,
        max_position_embeddings: int,
        base: float,
        is_neox_style: bool,
        dtype: Any,
        init_cache: bool = True,
    ) -> None:
        """As the original. With GALI raises ValueError for what bands do not know."""
        settings = current_settings()
        if settings is not None:
            if rotary_dim != head_size or not is_neox_style:
                raise ValueError(
                    f"gali: the model rotates {rotary_dim} of {head_size} components, "
                    f"{'in halves' if is_neox_style else 'in interleaved pairs'}; this plug-in knows heads that rotate "
                    "whole, in halves"
                )
            made.add(settings.mark())
            init_cache = False  # a model that reads the tables itself fails, instead of turning keys
        super().__init__(head_size, rotary_dim, max_position_embeddings, base, is_neox_style, dtype, init_cache)

    def dispatch_forward(self, compile_native: bool) -> Any:
        """What `forward` calls, chosen once, when the module is built."""
        own = super().dispatch_forward(compile_native)
        return own if current_settings() is None else _leave


def _leave(positions: Tensor, query: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    return query, key


def register() -> None:
    """Put the class into vLLM's registry. Raises RuntimeError if another plug-in has one there."""
    found = op_registry_oot.get(_NAME)
    if found is MaybeNoRotation:
        return
    if found is not None:
        raise RuntimeError(f"vllm_gali: another plug-in replaces {_NAME} already ({found.__module__}); remove one")
    name = RotaryEmbedding.name
    RotaryEmbedding.register_oot(MaybeNoRotation)
    MaybeNoRotation.name = name  # registering renamed it, and stock engines switch kernels on by this name
