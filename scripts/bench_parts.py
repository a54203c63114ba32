"""Where the time of the C++ convolutions goes: softmax, copies, sums, gradients of taps.

The kernels are built once more with a clock in every part (csrc/parts.cpp) and run on one thread,
as the op alone; of many calls the fastest is shown. Sums and tap gradients, of which the limit in
`bench_ops.py` is made, have their share of the speed of multiply-adds from registers beside them.
"""

import argparse
import ctypes
import platform
import time
from collections.abc import Callable
from datetime import date
from unittest import mock

import torch

from arguments import positive
from bench_ops import CASES, inside_taps, ops_alone, peak_flops
from lightconv_mt.ops import native
from lightconv_mt.ops.library import load_library
from lightconv_mt.train.memory import keep_freed_memory

PARTS = ("softmax", "copies", "sums", "tap gradients", "softmax gradients")


def main() -> None:
    """Print one line a case, kind, direction and type."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=positive, default=300)
    calls = parser.parse_args().calls
    keep_freed_memory()
    torch.set_num_threads(1)
    flops = peak_flops()
    library = load_library(sources=("parts.cpp",))
    print(
        f"{date.today()}  {platform.processor() or platform.machine()}  torch {torch.__version__}"
        f"  {flops / 1e9:.0f} GFLOP/s; ms of the fastest of {calls} calls"
    )
    with mock.patch.object(native, "load_library", lambda: library):
        for case in CASES:
            for name in ("lightconv", "dynamicconv"):
                for dtype in (torch.float32, torch.bfloat16):
                    show(case, name, dtype, calls, flops, library)


def show(
    case: tuple[int, ...],
    name: str,
    dtype: torch.dtype,
    calls: int,
    flops: float,
    library: ctypes.CDLL,
) -> None:
    """Time both directions of one case."""
    batch, length, channels, heads, width = case
    x = torch.randn(batch, length, channels).to(dtype)
    shape = (batch, length, heads, width) if name == "dynamicconv" else (heads, width)
    weight = torch.randn(shape).to(dtype if name == "dynamicconv" else torch.float32)
    limit = 2.0 * inside_taps(length, width) * batch * channels / flops
    for direction, op in ops_alone(name, x, weight, torch.randn_like(x)).items():
        total, parts = min(timed(op, library) for _ in range(calls))
        shown = [
            f"{part} {1e3 * seconds:.3f}"
            + (f" ({limit / seconds:.0%})" if part in ("sums", "tap gradients") else "")
            for part, seconds in zip(PARTS, parts, strict=True)
            if seconds
        ]
        print(
            f"{f'{name} {direction} {str(dtype)[6:]} {case}':<54}{1e3 * total:7.3f}  "
            f"{', '.join(shown)}, other {1e3 * (total - sum(parts)):.3f}"
        )


def timed(op: Callable[[], object], library: ctypes.CDLL) -> tuple[float, tuple[float, ...]]:
    """Seconds of one call and of its parts."""
    seconds = (ctypes.c_double * len(PARTS))()
    library.lcmt_parts(seconds)  # sets the clocks to zero
    with torch.inference_mode():
        start = time.perf_counter()
        op()
        total = time.perf_counter() - start
    library.lcmt_parts(seconds)
    return total, tuple(seconds)


if __name__ == "__main__":
    main()
