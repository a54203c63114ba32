"""A kernel that must spill when it is given few registers, and must not when it has enough."""

from typing import Any

import triton
import triton.language as tl

from kernel_gate.compile import AotCase
from kernel_gate.targets import Target


@triton.jit  # type: ignore[untyped-decorator]
def control_kernel(x, y, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Divide by the sum: every element is held until all of them have been read."""
    offsets = tl.arange(0, SIZE)
    values = tl.load(x + offsets)
    tl.store(y + offsets, values / tl.sum(values))


def control_case(target: Target, *, few_registers: bool) -> AotCase:
    """64 (128 on AMD) live elements a lane, with 32 (64) registers for them or without a limit."""
    nvidia = target.backend == "cuda"
    limit: dict[str, Any] = {"maxnreg": 32} if nvidia else {"waves_per_eu": 8}
    return AotCase(
        name="control, few registers" if few_registers else "control, enough registers",
        kernel=control_kernel,
        signature={"x": "*fp32", "y": "*fp32"},
        constants={"SIZE": 64 * 32 if nvidia else 128 * 64},
        width=0,
        dtype="fp32",
        options={"num_warps": 1, **(limit if few_registers else {})},
        in_reduced=True,
        must_spill=few_registers,
    )
