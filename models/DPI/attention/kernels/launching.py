"""What every launch needs: tensors that the copy engine can read, their descriptors, and the right device."""

import contextlib

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


def readable(x: Tensor) -> Tensor:
    """The tensor (B, H, N, D), copied if the copy engine cannot read it as it is.

    It reads rows of 16-byte multiples, contiguous, from a 16-byte boundary.
    """
    batch, head, token, one = x.stride()
    even = not (batch % 8 or head % 8 or token % 8 or x.data_ptr() % 16)
    return x if one == 1 and even and batch * head * token != 0 else x.contiguous()


def descriptor(x: Tensor, block: list[int]) -> TensorDescriptor:
    """What the copy engine reads blocks of a tensor by."""
    return TensorDescriptor(x, x.shape, x.stride(), block)


def on(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Inside the block kernels are launched on the device: they are on the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def power_of_2(x: int) -> int:
    """The smallest one of at least x. Triton's own function for it takes microseconds, for every token."""
    return 1 << (x - 1).bit_length()
