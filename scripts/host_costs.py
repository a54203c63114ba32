"""What a GPU's host pays for calls, and how much of a training step the GPU computes.

Calls are made twenty in a row, their kernels only queued; medians of ten rows. The step is
bench_gpu's of base size, eager, in bfloat16; what the GPU computes of it tells torch's profiler.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from bench_gpu_training import Sizes, example_step
from lightconv_mt import ops
from lightconv_mt.ops import Backend
from lightconv_mt.ops.register import lightconv_kernel
from lightconv_mt.ops.residual import residual

ROWS, IN_A_ROW, STEPS = 10, 20, 5


def main() -> int:
    """Print one line a call, and one a model."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    if not torch.cuda.is_available():
        print("host_costs: there is no GPU here; nothing was run")
        return 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name, call in calls().items():
        print(f"{name}: {1e6 * host_seconds(call):.0f} us", flush=True)
    device = torch.device("cuda", torch.cuda.current_device())
    for mixer in ("lightconv", "dynamicconv"):
        step = example_step(device, Backend.triton, Sizes(), Sizes().models[0], mixer)
        whole, computing = step_seconds(step)
        print(f"step of base {mixer}: {1e3 * whole:.1f} ms, computing {1e3 * computing:.1f} ms")
    return 0


def calls() -> dict[str, Callable[[], object]]:
    """What is timed, by name; none takes the GPU long."""
    options = {"device": "cuda", "dtype": torch.bfloat16}
    x, grad = torch.randn(2, 32, 32, 512, **options)
    weight, square = torch.randn(8, 7, **options), torch.randn(512, 512, **options)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    convolve = partial(ops.lightconv, padding_left=6, dropout=0.1, seed=5, backend=Backend.triton)

    def both_directions() -> object:
        return torch.autograd.grad(convolve(*leaves), leaves, grad)

    return {
        "add_": lambda: square.add_(1),
        "cast": lambda: square.float(),
        "product": lambda: x[0] @ square,
        "residual": lambda: residual(x, grad, dropout=0.1, seed=5, backend=Backend.triton),
        "lightconv": lambda: convolve(x, weight),
        "lightconv, autograd": lambda: convolve(*leaves),
        "lightconv, torch's registered gradient": lambda: lightconv_kernel.op(
            *leaves, 6, True, 0.1, 5
        ),
        "lightconv, both directions": both_directions,
    }


def host_seconds(call: Callable[[], object]) -> float:
    """Median seconds until a call returns, its kernels queued behind those of the one before."""
    found = []
    for _ in range(ROWS + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(IN_A_ROW):
            call()
        found.append((time.perf_counter() - started) / IN_A_ROW)
    return statistics.median(found[1:])


def step_seconds(step: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a step, and those of its kernels."""
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    whole = (time.perf_counter() - started) / STEPS
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    computing = sum(each.self_device_time_total for each in profiler.key_averages())
    return whole, computing / 1e6 / STEPS


if __name__ == "__main__":
    sys.exit(main())
