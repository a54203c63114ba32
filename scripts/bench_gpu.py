"""Time the Triton kernels on a GPU beside plain torch, unfold, self-attention and causal-conv1d.

Then cross-entropy, dropout and whole training steps, compiled and not: see bench_gpu_training.py.

Each case is checked against the reference at full size first; then all candidates are timed in
turn within one loop: `seconds` on the GPU, which never waits for the host meanwhile, and
`host_seconds` until the call returns. A model whose kernels are shorter than that is as fast as
its host. `of copy` is the bytes that a call must move over its seconds, as a share of a device
copy's speed in the same run; small cases stay in cache and may exceed it. Results go to OUTPUT.json
and OUTPUT.md. What is to be compiled for all cases is compiled first, by all cores.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments import positive
from baselines import attention, unfold
from bench_gpu_training import Sizes, measurements
from gpu_clock import WARM_UP, Clock, timed_apart
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
# Processes that compile and check; each holds some hundred MB of the GPU besides its tensors.
WORKERS = min(12, os.cpu_count() or 1)
Function = Callable[[Tensor, Tensor], Tensor]
# Sizes as in CASES, kind and type.
Job = tuple[tuple[int, ...], str, str]


def main() -> int:
    """Print and write one line a case, direction and candidate; 1 when a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=positive, default=30)
    parser.add_argument("--output", type=Path, default=Path("runs/bench_gpu"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_gpu: there is no GPU here; nothing was run")
        return 0
    import triton

    header = {
        "date": str(date.today()),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_bytes_per_second": copy_speed(),
        "rounds": arguments.rounds,
    }
    print(json.dumps(header))
    cases = [*product(CASES, ("lightconv", "dynamicconv"), TYPES)]
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        found = [*pool.map(checked_beside_others, cases)]
    wrong = [
        checked(case) if each is None else each for case, each in zip(cases, found, strict=True)
    ]
    if any(wrong):
        print(*filter(None, wrong), sep="\n", file=sys.stderr)
        return 1
    tables: dict[str, list[dict[str, Any]]] = {"convolutions": [], "training": []}
    device = torch.device("cuda", torch.cuda.current_device())
    for name, rows in (
        ("convolutions", convolutions(cases, header["copy_bytes_per_second"], arguments.rounds)),
        ("training", measurements(device, Backend.triton, Sizes(), rounds=arguments.rounds)),
    ):
        for row in rows:
            tables[name].append(row)
            print(markdown(row), flush=True)
            write(arguments.output, header, tables)
    return 0


def convolutions(cases: list[Job], copied: float, rounds: int) -> Iterator[dict[str, Any]]:
    """One row a case, candidate and direction."""
    for case, kind, dtype in cases:
        measured = measure(
            candidates_for(kind, case, dtype), *inputs(case, kind, dtype), rounds=rounds
        )
        for (label, direction), values in measured.items():
            names = dict(zip(("batch", "time", "channels", "heads", "width"), case, strict=True))
            call = Call(kind=kind, direction=direction, dtype=dtype, **names)
            share = call.minimum_bytes / values["seconds"] / copied
            row = {"kind": kind, "dtype": dtype, **names, "direction": direction}
            yield row | {"candidate": label, **values, "of_copy": share}


def write(output: Path, header: dict[str, Any], tables: dict[str, list[dict[str, Any]]]) -> None:
    """What is measured so far."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps({**header, **tables}, indent=1) + "\n")
    lines = [json.dumps(header)]
    for rows in tables.values():
        lines += ["", *table(rows)] if rows else []
    output.with_suffix(".md").write_text("".join(f"{line}\n" for line in lines))


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


def checked_beside_others(job: Job) -> str | None:
    """As `checked`; None where the memory that other processes leave does not suffice."""
    try:
        return checked(job)
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()


def checked(job: Job) -> str:
    """What is wrong with the kernels' output or a gradient beside the reference's in float32.

    On the way the kernels are compiled, into a cache on disk that all processes read.
    """
    case, kind, dtype = job
    x, weight, grad_y = inputs(*job)
    options = {"padding_left": weight.shape[-1] // 2}
    results = []
    for backend, wanted in ((Backend.triton, x.dtype), (Backend.reference, torch.float32)):
        arguments = [each.detach().to(wanted).requires_grad_() for each in (x, weight)]
        y = getattr(ops, kind)(*arguments, backend=backend, **options)
        gradients = torch.autograd.grad(y, arguments, grad_y.to(wanted))
        results.append([y.detach(), *gradients])
    for name, ours, expected in zip(("y", "grad_x", "grad_weight"), *results, strict=True):
        error = ((ours.float() - expected).abs().max() / expected.abs().max()).item()
        if not error <= TOLERANCES[dtype]:
            return f"bench_gpu: {kind} {case} {dtype} {name}: error {error:.2e}"
    return ""


def measure(
    candidates: dict[str, Function], x: Tensor, weight: Tensor, grad_y: Tensor, *, rounds: int
) -> dict[tuple[str, str], dict[str, float]]:
    """Median seconds and the most memory held, by candidate and direction."""
    clocks: dict[tuple[str, str], Clock] = {}
    peaks: dict[tuple[str, str], int] = {}
    for round_ in range(WARM_UP + rounds):
        for label, function in list(candidates.items()):
            keys = [(label, direction) for direction in ("forward", "backward")]
            pair = [clocks.setdefault(key, Clock()) for key in keys]
            try:
                if round_ == 0:
                    peaks |= zip(keys, peak_bytes(function, x, weight, grad_y), strict=True)
                timed_apart(both_directions(function, x, weight, grad_y), pair)
            except torch.cuda.OutOfMemoryError:
                print(f"{label}: out of memory")
                del candidates[label]
    return {
        key: {
            "seconds": clock.seconds,
            "host_seconds": clock.host_seconds,
            "peak_bytes": peaks[key],
        }
        for key, clock in clocks.items()
        if key[0] in candidates
    }


def both_directions(
    function: Function, x: Tensor, weight: Tensor, grad_y: Tensor
) -> list[Callable[[], object]]:
    """Forward, and the backward of what that has found."""
    found: list[Tensor] = []

    def backward() -> object:
        return torch.autograd.grad(found.pop(), (x, weight), grad_y, allow_unused=True)

    return [lambda: found.append(function(x, weight)), backward]


def peak_bytes(function: Function, x: Tensor, weight: Tensor, grad_y: Tensor) -> list[int]:
    """Most bytes held during one forward, and during that and one backward."""
    torch.cuda.reset_peak_memory_stats()
    held, peaks = torch.cuda.memory_allocated(), []
    for call in both_directions(function, x, weight, grad_y):
        call()
        peaks.append(torch.cuda.max_memory_allocated() - held)
    return peaks


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
