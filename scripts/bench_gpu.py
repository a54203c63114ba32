"""Time the Triton kernels on a GPU beside plain torch, unfold, self-attention and causal-conv1d.

Then cross-entropy, dropout and whole training steps, compiled and not: see bench_gpu_training.py.

Each case is checked against the reference at full size first; then all candidates are timed in
turn within one loop. `of copy` is the bytes that a call must move over its time, as a share of a
device copy's speed in the same run; small cases stay in cache and may exceed it. Results go to
OUTPUT.json and OUTPUT.md.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from datetime import date
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines import attention, unfold
from bench_gpu_training import Sizes, measurements
from kernel_gate.calls import TYPES, Call
from lightconv_mt import ops
from lightconv_mt.ops import Backend

# Sentences, positions, channels, heads, width.
CASES = [
    *((32, 32, 512, 8, width) for width in (3, 7, 31)),
    *((32, 512, 512, 8, width) for width in (3, 7, 31, 255)),
    (4, 8192, 1024, 16, 31),
]
# Of the largest value: the inputs of the reference are rounded too, its sums are not.
TOLERANCES = {"fp32": 1e-5, "bf16": 2**-7, "fp16": 2**-10}
Function = Callable[[Tensor, Tensor], Tensor]


def main() -> int:
    """Print and write one line a case, direction and candidate; 1 when a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("runs/bench_gpu"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_gpu: there is no GPU here; nothing was run")
        return 0
    import triton

    copied = copy_speed()
    header = {
        "date": str(date.today()),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_bytes_per_second": copied,
        "rounds": arguments.rounds,
    }
    print(json.dumps(header))
    rows: list[dict[str, Any]] = []
    for case, kind, dtype in product(CASES, ("lightconv", "dynamicconv"), TYPES):
        x, weight, grad_y = inputs(case, kind, dtype)
        candidates = candidates_for(kind, case, dtype)
        check(kind, x, weight, grad_y, TOLERANCES[dtype])
        measured = measure(candidates, x, weight, grad_y, rounds=arguments.rounds)
        for (label, direction), values in measured.items():
            names = dict(zip(("batch", "time", "channels", "heads", "width"), case, strict=True))
            call = Call(kind=kind, direction=direction, dtype=dtype, **names)
            share = call.minimum_bytes / values["seconds"] / copied
            row = {"kind": kind, "dtype": dtype, **names, "direction": direction}
            rows.append(row | {"candidate": label, **values, "of_copy": share})
            print(markdown(rows[-1]), flush=True)
    training = []
    device = torch.device("cuda", torch.cuda.current_device())
    for row in measurements(device, Backend.triton, Sizes(), rounds=arguments.rounds):
        training.append(row)
        print(markdown(row), flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.with_suffix(".json").write_text(
        json.dumps({**header, "rows": rows, "training": training}, indent=1) + "\n"
    )
    text = "\n".join([json.dumps(header), "", *table(rows), "", *table(training), ""])
    arguments.output.with_suffix(".md").write_text(text)
    return 0


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table."""
    return [" | ".join(rows[0]), " | ".join("---" for _ in rows[0]), *map(markdown, rows)]


def inputs(case: tuple[int, ...], kind: str, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and the gradient of y."""
    batch, time, channels, heads, width = case
    options = {"device": "cuda", "dtype": TYPES[dtype]}
    x, grad_y = torch.randn(2, batch, time, channels, **options)
    rows = (batch, time) if kind == "dynamicconv" else ()
    weight = torch.randn(*rows, heads, width, **options)
    return x.requires_grad_(), weight.requires_grad_(), grad_y


def candidates_for(kind: str, case: tuple[int, ...], dtype: str) -> dict[str, Function]:
    """What is timed, by label; every one takes x and raw weights."""

    def backend(which: Backend) -> Function:
        function = getattr(ops, kind)
        return lambda x, weight: function(
            x, weight, padding_left=weight.shape[-1] // 2, backend=which
        )

    found = {"triton": backend(Backend.triton), "torch": backend(Backend.torch)}
    found |= {"unfold": unfold, "attention": attention}
    if kind == "lightconv" and case[4] in (2, 3, 4) and find_spec("causal_conv1d"):
        found["causal-conv1d"] = causal_conv1d
    return found


def causal_conv1d(x: Tensor, weight: Tensor) -> Tensor:
    """Dao-AILab's depthwise kernel: causal, channels apart, no softmax of its own."""
    from causal_conv1d import causal_conv1d_fn

    taps = weight.softmax(-1).repeat_interleave(x.shape[-1] // weight.shape[0], dim=0)
    y: Tensor = causal_conv1d_fn(x.transpose(1, 2), taps.contiguous()).transpose(1, 2)
    return y


def check(kind: str, x: Tensor, weight: Tensor, grad_y: Tensor, tolerance: float) -> None:
    """Raise when the kernels' output or a gradient is not the reference's in float32."""
    options = {"padding_left": weight.shape[-1] // 2}
    results = []
    for backend, dtype in ((Backend.triton, x.dtype), (Backend.reference, torch.float32)):
        arguments = [each.detach().to(dtype).requires_grad_() for each in (x, weight)]
        y = getattr(ops, kind)(*arguments, backend=backend, **options)
        gradients = torch.autograd.grad(y, arguments, grad_y.to(dtype))
        results.append([y.detach(), *gradients])
    for name, ours, expected in zip(("y", "grad_x", "grad_weight"), *results, strict=True):
        error = ((ours.float() - expected).abs().max() / expected.abs().max()).item()
        if not error <= tolerance:
            raise SystemExit(f"{kind} {tuple(x.shape)} {x.dtype} {name}: error {error:.2e}")


def measure(
    candidates: dict[str, Function], x: Tensor, weight: Tensor, grad_y: Tensor, *, rounds: int
) -> dict[tuple[str, str], dict[str, float]]:
    """Median seconds and the most memory held, by candidate and direction; the first 3 warm up."""
    found: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for round_ in range(rounds + 3):
        for label, function in list(candidates.items()):
            try:
                once = measure_once(function, x, weight, grad_y)
            except torch.cuda.OutOfMemoryError:
                print(f"{label}: out of memory")
                del candidates[label]
                continue
            if round_ >= 3:
                for direction, values in once.items():
                    found.setdefault((label, direction), []).append(values)
    return {
        key: {
            "seconds": statistics.median(seconds for seconds, _ in values),
            "peak_bytes": max(peak for _, peak in values),
        }
        for key, values in found.items()
    }


def measure_once(
    function: Function, x: Tensor, weight: Tensor, grad_y: Tensor
) -> dict[str, tuple[float, int]]:
    """Seconds and bytes of memory of one forward and one backward."""
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    start, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    start.record()
    y = function(x, weight)
    middle.record()
    peak = torch.cuda.max_memory_allocated()
    torch.autograd.grad(y, (x, weight), grad_y, allow_unused=True)
    end.record()
    torch.cuda.synchronize()
    return {
        "forward": (start.elapsed_time(middle) / 1e3, peak - held),
        "backward": (middle.elapsed_time(end) / 1e3, torch.cuda.max_memory_allocated() - held),
    }


def copy_speed() -> float:
    """Bytes a second, read and written, of a copy of 1 GiB; the best of twenty."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target, best = torch.empty_like(source), 0.0
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        best = max(best, 2 * 2**30 / (start.elapsed_time(end) / 1e3))
    return best


def markdown(row: dict[str, Any]) -> str:
    """A line of the table."""
    values = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
    return " | ".join(values)


if __name__ == "__main__":
    sys.exit(main())
