"""What of a GPU the fused kernels depend on. Knows nothing of Triton."""

import functools
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Card:
    """A kind of GPU.

    capability: compute capability. shared_memory: bytes of it that a program may have.
    """

    capability: tuple[int, int]
    shared_memory: int

    @property
    def has_copy_engine(self) -> bool:
        """Whether tiles can be read by tensor descriptors, and kernels launched before the one ahead has ended."""
        return self.capability >= (9, 0)

    @property
    def has_warp_groups(self) -> bool:
        """Whether four warps multiply together and from shared memory, as Hopper's alone do."""
        return self.capability[0] == 9

    @property
    def obstacle(self) -> str | None:
        """Why the fused kernels cannot run on it, or None."""
        if self.capability < (8, 0):
            have = ".".join(map(str, self.capability))
            return f"it needs a GPU of compute capability 8.0 (Ampere) or later, and this one has {have}"
        least = HOPPER if self.has_copy_engine else ADA
        if self.shared_memory < least.shared_memory:
            return (
                f"its tiles need {least.shared_memory >> 10} KiB of shared memory, more than the "
                f"{self.shared_memory >> 10} KiB of this GPU"
            )
        return None


HOPPER = Card((9, 0), 227 << 10)
AMPERE = Card((8, 0), 163 << 10)
ADA = Card((8, 9), 99 << 10)  # also the small cards of the Ampere generation, 8.6


@functools.lru_cache
def card_of(device: torch.device) -> Card:
    """The device's card; for a device that is no GPU, whose kernels run in Triton's interpreter, `HOPPER`."""
    if device.type != "cuda":
        return HOPPER
    properties: Any = torch.cuda.get_device_properties(device)
    return Card((properties.major, properties.minor), int(properties.shared_memory_per_block_optin))
