"""Time the convolutions against plain torch, unfold and self-attention, and the machine's limit.

All candidates are checked against the reference first, then timed in turn: in every round each
runs once untimed, so that none meets the caches another one left, and then a few times timed.
Minimum and median are given; ratios are of medians. Native is timed twice: in a training call,
through autograd as the others are, and as the op alone, which allocates its outputs too but records
no graph. The limit of a case is the larger of its
multiply-adds at the speed measured from registers and its bytes at the speed of a copy in cache;
that of one step is its bytes at the speed of a read. `copy` is the share that its bytes alone have,
at the speed of a copy of a tensor of the case's size. All speeds are measured in the same run.
"""

import argparse
import ctypes
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from torch import Tensor

from arguments import positive
from baselines import attention, unfold
from lightconv_mt.ops import Backend, dynamicconv, dynamicconv_step, lightconv, lightconv_step
from lightconv_mt.ops.library import load_library
from lightconv_mt.ops.register import (
    dynamicconv_backward_kernel,
    dynamicconv_kernel,
    lightconv_backward_kernel,
    lightconv_kernel,
)
from lightconv_mt.train.memory import keep_freed_memory

CASES = [
    (32, 32, 512, 8, 3),
    (32, 32, 512, 8, 7),
    (32, 32, 512, 8, 31),
    (8, 512, 512, 8, 7),
    (8, 512, 512, 8, 31),
    (1, 2048, 512, 8, 31),
]
STEP_ROWS, STEP_WIDTHS = (1, 32, 128), (7, 31)  # of 512 channels and 8 heads
# Timed calls a round; a candidate whose call takes longer than a fifth of a second gets one.
CALLS, LONG_SECONDS = 5, 0.2
Times = dict[str, list[float]]


def main() -> None:
    """Print one line a case, kind, direction and type."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=positive, default=4)
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    keep_freed_memory()  # as in training; else every candidate measures page faults
    print(
        f"{date.today()}  {platform.processor() or platform.machine()}  torch {torch.__version__}"
    )
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        flops, copied = peak_flops() * threads, copy_speed(2**21)
        print(f"{threads} threads: {flops / 1e9:.0f} GFLOP/s, copies {copied / 1e9:.0f} GB/s")
        print(
            f"{'minimum / median ms, shares of the limit':<54}{'op alone':>26}{'copy':>6}"
            f"{'training call':>23}"
            "   training calls, times slower than native"
        )
        for case in CASES:
            for name in ("lightconv", "dynamicconv"):
                for dtype in (torch.float32, torch.bfloat16):
                    bench(case, name, dtype, arguments.rounds, flops, copied)
        read = read_speed()
        print(f"one step, reads {read / 1e9:.0f} GB/s")
        for rows in STEP_ROWS:
            for width in STEP_WIDTHS:
                for name in ("lightconv", "dynamicconv"):
                    bench_step(rows, width, name, arguments.rounds, read)


def bench(
    case: tuple[int, ...], name: str, dtype: torch.dtype, rounds: int, flops: float, copied: float
) -> None:
    """Check and time every candidate on one case, forward and backward."""
    batch, length, channels, heads, width = case
    x = torch.randn(batch, length, channels).to(dtype).requires_grad_()
    shape = (batch, length, heads, width) if name == "dynamicconv" else (heads, width)
    weight = torch.randn(shape).to(dtype if name == "dynamicconv" else torch.float32)
    weight.requires_grad_()
    upstream = torch.randn_like(x)
    candidates = candidate_functions(name)
    expected = candidates["reference"](x, weight)
    times: dict[str, Times] = {"forward": {}, "backward": {}}
    for label, function in candidates.items():
        if label != "attention":
            torch.testing.assert_close(function(x, weight), expected, rtol=0.05, atol=0.05)
    del candidates["reference"]
    alone = ops_alone(name, x.detach(), weight.detach(), upstream)
    for _ in range(rounds):
        for direction, op in alone.items():
            with torch.inference_mode():
                for timed in [False] + [True] * CALLS:
                    start = time.perf_counter()
                    op()
                    if timed:
                        times[direction].setdefault("alone", []).append(time.perf_counter() - start)
        for label, function in candidates.items():
            for timed in [False] + [True] * CALLS:
                start = time.perf_counter()
                y = function(x, weight)
                middle = time.perf_counter()
                y.backward(upstream)
                end = time.perf_counter()
                x.grad = weight.grad = None
                if timed:
                    times["forward"].setdefault(label, []).append(middle - start)
                    times["backward"].setdefault(label, []).append(end - middle)
                if timed and end - start > LONG_SECONDS:
                    break
    # x and y move once, in backward x, dy and dx.
    inside = inside_taps(length, width)
    moved = x.numel() * x.element_size()
    read = weight.numel() * weight.element_size()
    same_size = copy_speed(moved)
    for direction, factor in (("forward", 1), ("backward", 2)):
        work = 2.0 * inside * batch * channels * factor
        traffic = (1 + factor) * moved + factor * read
        limit = max(work / flops, traffic / copied)
        found = times[direction]
        median = statistics.median(found["native"])
        others = "  ".join(
            f"{label} {statistics.median(values) / median:.1f}"
            for label, values in found.items()
            if label not in ("native", "alone")
        )
        title = f"{name} {direction} {str(dtype)[6:]} {case}"
        shares = f"{traffic / same_size / min(found['alone']):6.0%}".join(
            f"{1e3 * best:8.3f} /{1e3 * middle:7.3f}{limit / best:6.0%} /{limit / middle:4.0%}"
            for best, middle in (
                (min(found[label]), statistics.median(found[label]))
                for label in ("alone", "native")
            )
        )
        print(f"{title:<54}{shares}   {others}")


def bench_step(rows: int, width: int, name: str, rounds: int, read: float) -> None:
    """Check and time one step of C = 512, H = 8 in float32, C++ and plain torch."""
    function = lightconv_step if name == "lightconv" else dynamicconv_step
    x, ring = torch.randn(rows, 1, 512), torch.randn(rows, width - 1, 512)
    position = torch.full((rows,), 3 * width)
    weight = torch.randn((rows, 1, 8, width) if name == "dynamicconv" else (8, width))
    backends = (Backend.native, Backend.torch)
    outputs = [function(x, ring.clone(), position, weight, backend=each) for each in backends]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    times: Times = {each.value: [] for each in backends}
    with torch.inference_mode():
        for _ in range(10 * rounds):
            for backend in backends:
                for timed in [False] + [True] * CALLS:
                    start = time.perf_counter()
                    function(x, ring, position, weight, backend=backend)
                    if timed:
                        times[backend.value].append(time.perf_counter() - start)
    best, median = min(times["native"]), statistics.median(times["native"])
    # Every slot is read; x is read, and written to its slot and, as y, to the output.
    moved = 4.0 * (ring.numel() + weight.numel() + 3 * x.numel())
    plain = statistics.median(times["torch"]) / median
    print(
        f"{f'{name} step ({rows}, 512, 8, {width})':<62}{1e3 * best:8.4f} /{1e3 * median:7.4f}"
        f"{moved / best / read:7.0%}   torch {plain:.1f}"
    )


def inside_taps(length: int, width: int) -> int:
    """Taps of all positions that lie inside the sequence, which alone count as work."""
    position = torch.arange(length)[:, None] + torch.arange(width) - width // 2
    return int(((position >= 0) & (position < length)).sum())


def ops_alone(
    name: str, x: Tensor, weight: Tensor, upstream: Tensor
) -> dict[str, Callable[[], object]]:
    """The registered native ops of both directions, called without autograd."""
    forward, backward = {
        "lightconv": (lightconv_kernel, lightconv_backward_kernel),
        "dynamicconv": (dynamicconv_kernel, dynamicconv_backward_kernel),
    }[name]
    options = (weight.shape[-1] // 2, True, 0.0, 0)
    return {
        "forward": lambda: forward(x, weight, *options),
        "backward": lambda: backward(upstream, x, weight, *options),
    }


def candidate_functions(name: str) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """What is timed, by label; every one takes x and raw weights."""
    function = lightconv if name == "lightconv" else dynamicconv

    def backend(which: Backend) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, weight: function(
            x, weight, padding_left=weight.shape[-1] // 2, backend=which
        )

    names = {
        each.value: backend(each) for each in (Backend.reference, Backend.native, Backend.torch)
    }
    return {**names, "unfold": unfold, "attention": attention}


def peak_flops() -> float:
    """Operations a second of one thread from registers, the best of ten runs."""
    library = load_library(sources=("peak.cpp",))
    library.lcmt_peak.restype = ctypes.c_double
    buffer = (ctypes.c_float * 64)(1e-9, 1e-9)
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        operations = library.lcmt_peak(ctypes.c_int64(2_000_000), buffer)
        best = max(best, operations / (time.perf_counter() - start))
    return best


def copy_speed(size: int) -> float:
    """Bytes a second, read and written, of a copy of `size` bytes again and again."""
    source, target = torch.randn(2, size // 4)
    best = 0.0
    for _ in range(200):
        start = time.perf_counter()
        target.copy_(source)
        best = max(best, 2 * size / (time.perf_counter() - start))
    return best


def read_speed() -> float:
    """Bytes a second of a sum over 8 MB, the size of the state of 128 rows."""
    source = torch.randn(2**21)
    best = 0.0
    for _ in range(100):
        start = time.perf_counter()
        source.sum()
        best = max(best, 2**23 / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    main()
