"""A kernel that must spill when it is given few registers, and must not when it has enough."""

from typing import Any

import torch
import triton
import triton.language as tl

from kernel_gate.targets import Target


@triton.jit  # type: ignore[untyped-decorator]
def control_kernel(x, y, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Divide by the sum: every element is held until all of them have been read."""
    offsets = tl.arange(0, SIZE)
    values = tl.load(x + offsets)
    tl.store(y + offsets, values / tl.sum(values))


def launch_control(target: Target, *, few_registers: bool) -> None:
    """Hold 64 elements a lane (128 on AMD), in 32 registers (64) or as many as there are."""
    nvidia = target.backend == "cuda"
    limit: dict[str, Any] = {"maxnreg": 32} if nvidia else {"waves_per_eu": 8}
    size = 64 * 32 if nvidia else 128 * 64
    x, y = torch.ones(2, size)
    control_kernel[(1,)](x, y, SIZE=size, num_warps=1, **(limit if few_registers else {}))
