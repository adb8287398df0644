"""Compile what the fused kernels' launches would run on a GPU, without one; as a program, without Triton's interpreter.

Argument: JSON, a list of the arguments of `compile_case`. A line of JSON for each: the kernels' names, bytes of shared
memory, registers and bytes of stack per thread, tensor core instructions, and in the loop over keys stores to shared
memory and copies to it that nobody waits for.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction
from triton.experimental.gluon.nvidia import hopper
from triton.tools.tensor_descriptor import TensorDescriptor

from models.DPI.attention import cards
from models.DPI.attention.cards import ADA, AMPERE, HOPPER, Card
from models.DPI.attention.kernels import decode, prefill, prefill_hopper, rotate
from models.DPI.methods import build_method
from models.DPI.planning import Padding, make_plan
from tests.models.DPI import oracle

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"}
MODULES = {"prefill": prefill, "prefill_hopper": prefill_hopper, "decode": decode, "rotate": rotate}
CARDS = {"hopper": HOPPER, "8.0": AMPERE, "8.6": Card((8, 6), ADA.shared_memory), "8.9": ADA}
_PRODUCT = r"\bHG?MMA\."
_COPY = r"\b(?:UTMALDG|LDGSTS)\b"
OPTIONS = {"num_warps", "num_stages", "maxnreg", "enable_fp_fusion", "launch_pdl"}


class _Compiler:
    """Stands for a kernel: compiles what would be launched."""

    def __init__(self, kernel: Any, card: Card, found: list[dict[str, Any]]) -> None:
        self.kernel, self.card, self.found = kernel, card, found

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self._launch

    def _launch(self, *args: Any, **kwargs: Any) -> None:
        names = self.kernel.arg_names
        given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k not in OPTIONS}
        if "DEPENDENT" in given:
            given["DEPENDENT"] = self.card.has_copy_engine  # as on a GPU
        fixed = self.kernel.do_not_specialize or ()
        kinds = {name: _type_of(given[name], name in kwargs, name not in fixed) for name in names}
        constants: dict[tuple[int, ...], Any] = {}
        even = []
        for path, name, value, kind in _parts(names, given, kinds):
            if kind == "constexpr":
                constants[path] = value
            elif kind.startswith("*") or (kind == "i32" and name not in fixed and not value % 16):
                even.append(path)
        source = (GluonASTSource if isinstance(self.kernel, GluonJITFunction) else ASTSource)(
            self.kernel,
            signature=kinds,
            constexprs=constants,
            attrs={path: [["tt.divisibility", 16]] for path in even},
        )
        options = {name: value for name, value in kwargs.items() if name in OPTIONS}
        major, minor = self.card.capability
        made = triton.compile(source, target=GPUTarget("cuda", 10 * major + minor, 32), options=options)
        self.found.append({"name": self.kernel.__name__, "shared": made.metadata.shared, **_read(made.asm["cubin"])})


def _parts(names: list[str], given: dict[str, Any], kinds: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Of each argument, and of each part of those that are tuples: its path, the argument's name, value and type."""
    for place, name in enumerate(names):
        if isinstance(given[name], tuple):
            for part, (value, kind) in enumerate(zip(given[name], kinds[name], strict=True)):
                yield (place, part), name, value, kind
        else:
            yield (place,), name, given[name], kinds[name]


def _type_of(value: Any, constant: bool, specialized: bool) -> Any:
    """As Triton's launcher sees it: an argument that is 1 is compiled in."""
    if isinstance(value, tuple):
        return tuple(_type_of(part, constant, specialized) for part in value)
    if constant or value is None or (specialized and type(value) is int and value == 1):
        return "constexpr"
    if isinstance(value, hopper.TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)},{value.layout!r}>"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>".replace(" ", "")
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"


def _read(cubin: bytes) -> dict[str, int]:
    """What the assembler's output says of itself."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)

        def tool(name: str, *flags: str) -> str:
            return subprocess.run([TOOLS / name, *flags, path], check=True, capture_output=True, text=True).stdout

        usage, code = tool("cuobjdump", "-res-usage"), tool("nvdisasm", "-c")
    registers, stack = (int(re.findall(rf"{key}:(\d+)", usage)[0]) for key in ("REG", "STACK"))
    products = len(re.findall(_PRODUCT, code))
    loop = _loop_of(code)
    return {
        "registers": registers,
        "stack": stack,
        "products": products,
        "loop_stores": len(re.findall(r"\bSTS\b", loop)),
        "loop_copies": len(re.findall(_COPY, loop)),
    }


def _loop_of(code: str) -> str:
    """The shortest run of instructions that ends in a jump back to its beginning, multiplies and loads tiles."""
    labels = {match[1]: match.start() for match in re.finditer(r"^(\.L_x_\d+):", code, re.MULTILINE)}
    jumps = ((labels[jump[1]], jump.end()) for jump in re.finditer(r"BRA `\((\.L_x_\d+)\)", code))
    runs = (code[first:last] for first, last in jumps if first < last)
    loops = [run for run in runs if re.search(_PRODUCT, run) and re.search(_COPY, run)]
    return min(loops, key=len, default="")


def compile_case(
    method: str,
    params: dict[str, Any],
    queries: int,
    head_dim: int,
    softcap: float | None = None,
    with_sinks: bool = False,
    card: str = "hopper",
    rotary_dim: int | None = None,
    in_groups: bool = False,
    group: int = 4,
) -> list[dict[str, Any]]:
    """Every kernel that attention of 2 key heads, with `group` query heads each, on 300 keys launches, W = 64.

    card: of `CARDS`. in_groups: the prefill for groups of warps on Hopper.
    """
    found: list[dict[str, Any]] = []
    kernels = [(module, f"{name}_kernel") for name, module in MODULES.items()]
    originals = [getattr(module, name) for module, name in kernels]
    for (module, name), kernel in zip(kernels, originals, strict=True):
        setattr(module, name, _Compiler(kernel, CARDS[card], found))
    card_of = cards.card_of
    is_for_hopper = prefill._is_for_hopper
    prefill._is_for_hopper = lambda *_: in_groups
    cards.card_of = lambda device: CARDS[card]
    plan = make_plan(
        build_method(method, params, 64),
        oracle.rope(64, rotary_dim or head_dim),
        Padding(None, 300 - queries, queries),
        seed=0,
    )
    q = torch.zeros(1, 2 * group, queries, head_dim, dtype=torch.bfloat16)
    k = torch.zeros(1, 2, 300, head_dim, dtype=torch.bfloat16)
    sinks = torch.zeros(2 * group, dtype=torch.bfloat16) if with_sinks else None
    if queries == 1:
        decode.attend_one(q, k, k, plan, scaling=1.0, softcap=softcap, sinks=sinks)
    else:
        prefill.attend(q, k, k, plan.rows[0], scaling=1.0, softcap=softcap, sinks=sinks, noise=plan.noise)
    for (module, name), kernel in zip(kernels, originals, strict=True):
        setattr(module, name, kernel)
    cards.card_of, prefill._is_for_hopper = card_of, is_for_hopper
    return found


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        seen = {json.dumps(one) for one in compile_case(*case)}
        sys.stdout.write(json.dumps([json.loads(one) for one in sorted(seen)]) + "\n")
