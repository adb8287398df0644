"""What stands between a kernel's products and its softmax, in base 2: a soft cap on logits, a sink beside them.

Arguments that are None are constants of the code: without a cap or sinks the kernels are what they are without this.
"""

import triton
import triton.language as tl

from models.DPI.attention.kernels.noise import LOG2E

_LOG2E = tl.constexpr(LOG2E)


def softcap_factors(scaling: float, softcap: float | None) -> tuple[float, float | None]:
    """What products of queries and keys are multiplied by before `capped`, and the cap that it takes."""
    if softcap is None:
        return scaling * LOG2E, None
    return 2 * LOG2E * scaling / softcap, softcap * LOG2E


@triton.jit
def capped(x, cap):
    """c tanh(y / c) of logits y, in units of base 2. x: 2 y log2(e) / c, or the logits in base 2 where cap is None.

    cap: c log2(e).
    """
    if cap is not None:
        x = cap - 2.0 * cap / (1.0 + tl.exp2(x))
    return x


@triton.jit
def before_cap(gradient, x, cap):
    """The gradient of logits before the cap, from that of x, which `capped` returned."""
    if cap is not None:
        share = x * (1.0 / cap)
        gradient = gradient * (1.0 - share * share)
    return gradient


@triton.jit
def sink_of(sinks, head):
    """The sinks of heads, logits in base 2."""
    return tl.load(sinks + head).to(tl.float32) * _LOG2E
