"""Measure launches of the Triton kernels on this GPU and write the best into ops/triton_table.py.

Every entry starts from the launch that is used now and changes one number at a time while that
helps. bfloat16; an hour for everything. Run `make test-gpu` afterwards.
"""

import argparse
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from arguments import positive
from gpu_clock import WARM_UP, Clock, timed_apart
from lightconv_mt.ops import triton_table as table

CHOICES = {
    "tile": (256, 512, 1024, 2048, 4096),
    "steps": (1, 2, 4, 8),
    "taps": (0, 2, 3, 4, 5, 8),
    "warps": (1, 2, 4, 8, 16),
}
BLOCK_CHOICES = (1024, 2048, 4096, 8192, 16384)
# Sentences, length and rows of a step for the three size classes.
SIZES = ((8, 32), (128, 32), (32, 1024))
ROWS = (64, 2048, 16384)


def main() -> None:
    """Tune what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = sorted({key[0] for key in table.UNTUNED} | set(table.UNTUNED_BLOCKS))
    parser.add_argument("--kernels", nargs="+", default=known)
    parser.add_argument("--widths", nargs="+", type=positive, default=[3, 7, 15, 31, 63])
    parser.add_argument("--cols", nargs="+", type=positive, default=[64], help="channels of a head")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("tune-kernels: no GPU here; the table stays as it is")
        return
    architecture = table.architecture_of(torch.device("cuda", torch.cuda.current_device()))
    blocks = [kernel for kernel in arguments.kernels if kernel in table.UNTUNED_BLOCKS]
    for kernel in blocks:
        best_block = best_of_all(kernel, architecture, block_call(kernel))
        print(f"{kernel}: {best_block}", flush=True)
        write_table()
    kernels = [kernel for kernel in arguments.kernels if kernel not in blocks]
    for kernel, width, cols in product(kernels, arguments.widths, arguments.cols):
        for size in range(len(SIZES)):
            width_class = next(end for end in table.WIDTH_CLASSES if width <= end)
            key = (kernel, architecture, width_class, cols, size)
            best, seconds, before = climb(key, call(kernel, width, cols, size))
            table.TUNED[key] = best
            print(f"{key}: {best} {1e6 * seconds:.1f} us, before {1e6 * before:.1f}", flush=True)
            write_table()


def call(kernel: str, width: int, cols: int, size: int) -> Callable[[], object]:
    """One launch of a kernel."""
    from lightconv_mt.ops import triton_dynamicconv, triton_lightconv, triton_step

    kind, direction = kernel.split("_")
    heads, options = 512 // cols, {"device": "cuda", "dtype": torch.bfloat16}
    batch, time = (ROWS[size], 1) if direction == "step" else SIZES[size]
    x, grad_y = torch.randn(2, batch, time, 512, **options)
    rows = (batch, time) if kind == "dynamicconv" else ()
    weight = torch.randn(*rows, heads, width, **options)
    if direction == "step":
        ring = torch.randn(batch, width - 1, 512, **options)
        position = torch.arange(batch, device="cuda")
        step = getattr(triton_step, f"{kernel}_triton")
        return lambda: step(x, ring, position, weight)
    module = triton_lightconv if kind == "lightconv" else triton_dynamicconv
    convolve = {"padding_left": width - 1, "dropout": 0.1, "seed": 1}
    if direction == "forward":
        return lambda: getattr(module, f"{kind}_triton")(x, weight, **convolve)
    return lambda: getattr(module, f"{kind}_triton_backward")(grad_y, x, weight, **convolve)


def block_call(kernel: str) -> Callable[[], object]:
    """One launch of a kernel that takes blocks."""
    from lightconv_mt.ops.triton_cross_entropy import cross_entropy_triton_
    from lightconv_mt.ops.triton_residual import residual_triton

    options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    if kernel == "residual":
        x, y = torch.randn(2, 4096, 1024, **options)
        return lambda: residual_triton(x.float(), y, 0.1, 1, torch.float32)
    logits = torch.randn(4096, 32_768, **options)
    target = torch.zeros(4096, dtype=torch.int64, device="cuda")
    loss = {"peak": 0.9, "spread": 1e-5, "agreement": 0.5, "gradient": True}
    paired = kernel == "paired_cross_entropy"
    return lambda: cross_entropy_triton_(logits, target, paired=paired, **loss)


def best_of_all(kernel: str, architecture: str, function: Callable[[], object]) -> table.Block:
    """The fastest block, which goes into `TUNED_BLOCKS`."""
    key = (kernel, architecture)
    seconds = {}
    for elements, warps in product(BLOCK_CHOICES, CHOICES["warps"][1:]):
        table.TUNED_BLOCKS[key] = table.Block(elements, warps)
        seconds[table.TUNED_BLOCKS[key]] = median_of_20(function)
    table.TUNED_BLOCKS[key] = min(seconds, key=lambda block: seconds[block])
    return table.TUNED_BLOCKS[key]


def climb(
    key: tuple[str, str, int, int, int], function: Callable[[], object]
) -> tuple[table.Tiling, float, float]:
    """The best tiling found, its seconds and those of the one used before."""
    best = table.tiling_of(*key)
    before = fastest = timed(key, best, function)
    improved = True
    while improved:
        improved = False
        for name, values in CHOICES.items():
            for candidate in (replace(best, **{name: value}) for value in values):
                if candidate != best and (found := timed(key, candidate, function)) < fastest:
                    best, fastest, improved = candidate, found, True
    return best, fastest, before


def timed(
    key: tuple[str, str, int, int, int], tiling: table.Tiling, function: Callable[[], object]
) -> float:
    """As `median_of_20`, of a tiling."""
    table.TUNED[key] = tiling
    table.launch_of.cache_clear()
    return median_of_20(function)


def median_of_20(function: Callable[[], object]) -> float:
    """Median seconds on the GPU of 20 launches; infinite when the compiler refuses them."""
    clock = Clock()
    try:
        for _ in range(WARM_UP + 20):
            timed_apart([function], [clock])
    except Exception as error:  # whatever the compiler raises
        print(f"  {type(error).__name__}")
        return float("inf")
    return clock.seconds


def write_table() -> None:
    """Put `TUNED` and `TUNED_BLOCKS` into the source of the module."""
    path = Path(table.__file__)
    text = path.read_text()
    for name in ("TUNED", "TUNED_BLOCKS"):
        entries = sorted(getattr(table, name).items())
        body = "".join(f"    {key!r}: {value!r},\n" for key, value in entries).replace("'", '"')
        pattern = rf"(?ms)^({name}: [^\n]* = \{{).*?\}}$"
        new = f"\n{body}}}" if entries else "}"
        text = re.sub(pattern, lambda found, new=new: found[1] + new, text)  # type: ignore[misc]
    path.write_text(text)


if __name__ == "__main__":
    main()
