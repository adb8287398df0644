"""vLLM's attention backend over bands, on a paged cache whose keys are not rotated."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.platforms import current_platform
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import KVCacheLayout

from vllm_gali import cuda, paged, rotary
from vllm_gali.settings import engine_of, settings_of


@dataclass
class Metadata(AttentionMetadata):  # type: ignore[misc]
    """One step, the same for all layers."""

    batch: paged.Batch


class GaliBackend(AttentionBackend):  # type: ignore[misc]
    """Attention over bands."""

    forward_includes_kv_cache_update = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float16", "bfloat16"]

    @staticmethod
    def get_name() -> str:
        """Of vLLM's list of backends."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type["Impl"]:
        """What a layer attends with."""
        return Impl

    @staticmethod
    def get_builder_cls() -> type["Builder"]:
        """What makes a step's metadata."""
        return Builder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Tokens of a block."""
        return [MultipleOf(16)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Blocks of (Hkv, block size, 2 D)."""
        return (KVCacheLayout.LBHNC,)


class GaliCpuBackend(GaliBackend):
    """The same under the name of the backend whose place it takes: vLLM looks the name up in its list."""

    @staticmethod
    def get_name() -> str:
        """Of vLLM's list of backends."""
        return "CPU_ATTN"


class Builder(AttentionMetadataBuilder[Metadata]):  # type: ignore[misc]
    """Makes a step's metadata: the bands of every request, from its length alone."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: VllmConfig, device: torch.device):
        """See the base class."""
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.engine = engine_of(vllm_config)
        self.kept: dict[Any, Any] = {}

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Metadata:
        """Metadata of a step. Raises ValueError where queries are to see keys after them."""
        step = common_attn_metadata
        if step.causal is not True:
            raise ValueError(
                "gali: a step whose attention is not causal; methods are for models that attend to the past"
            )
        starts = step.query_start_loc_cpu.tolist()
        lengths = _lengths_of(step)
        segments = [
            self.engine.method.segments(self.engine.rope, length - (stop - start), length) if start < stop else []
            for start, stop, length in zip(starts, starts[1:], lengths, strict=False)
        ]
        return Metadata(paged.Batch(starts, lengths, step.block_table_tensor, segments, kept=self.kept))


def _lengths_of(step: CommonAttentionMetadata) -> list[int]:
    """Tokens of each request, from the CPU: reading them from a GPU would wait for all that it has to do.

    The bound that vLLM gives is exact but for speculative decoding, which is refused.
    """
    lengths: Tensor = step.seq_lens
    if lengths.device.type != "cpu" and step.seq_lens_cpu_upper_bound is not None:
        lengths = step.seq_lens_cpu_upper_bound
    found: list[int] = lengths[: step.num_reqs].tolist()
    return found


class Impl(AttentionImpl[Metadata]):  # type: ignore[misc]
    """One layer's attention."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        **others: Any,
    ) -> None:
        """See the base class. Raises ValueError for what bands do not know."""
        unknown: dict[str, Any] = {
            "alibi_slopes": alibi_slopes,
            "sliding_window": sliding_window,
            "logits_soft_cap": logits_soft_cap or None,
            "kv_sharing_target_layer_name": kv_sharing_target_layer_name,
            **others,
        }
        for name, value in unknown.items():
            if value is not None:
                raise ValueError(
                    f"gali: a layer of the model attends with {name} = {value!r}, which this plug-in does not"
                )
        if attn_type != AttentionType.DECODER:
            raise ValueError(f"gali: a layer of the model attends as {attn_type!r}; methods are for decoders")
        if kv_cache_dtype not in GaliBackend.supported_kv_cache_dtypes:
            raise ValueError(f"gali: kv_cache_dtype = {kv_cache_dtype!r} is not supported; leave it out")
        settings = settings_of(get_current_vllm_config())
        if settings is None or settings.mark() not in rotary.made:
            raise ValueError(
                "gali: the model did not ask vLLM for the rotary module that this plug-in replaces, so its keys would "
                "enter the cache rotated; use vLLM's own implementation of the model (model_impl = 'vllm')"
            )
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.workspace = self._workspace() if current_platform.device_type == "cuda" else 0

    def _workspace(self) -> int:
        """Bytes that the kernels on CUDA need besides the cache. Raises ValueError where they cannot run."""
        config = get_current_vllm_config()
        shape = cuda.Shape(self.num_heads, self.num_kv_heads, self.head_size)
        why = cuda.obstacle(shape, config.model_config.dtype, torch.device("cuda", torch.cuda.current_device()))
        if why:
            raise ValueError(f"gali: the kernels that read the paged cache cannot run here: {why}")
        length, engine = config.model_config.max_model_len, engine_of(config)
        bands = len(engine.method.segments(engine.rope, length - 1, length)[-1].bands)
        return cuda.workspace(shape, bands, length, config.scheduler_config.max_num_batched_tokens)

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write a step's keys, as they are, and values into the cache."""
        paged.IMPLEMENTATIONS[key.device.type].write(key, value, kv_cache, slot_mapping)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Metadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attention of a step's queries, (N, H, D), into `output`."""
        if output_scale is not None or output_block_scale is not None:
            raise ValueError("gali: a quantised output fused with attention is not supported")
        if attn_metadata is None:  # vLLM measures memory without a cache, and leaves what it finds in use free
            torch.empty(self.workspace, dtype=torch.uint8, device=query.device)
            return output.zero_()
        attend = paged.IMPLEMENTATIONS[query.device.type].attend
        attend(query, kv_cache, attn_metadata.batch, self.scale, output)
        return output
