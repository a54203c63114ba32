"""Traffic gate: the bytes that the Triton kernels move, counted, against those they must move."""

import argparse
import sys
from itertools import product

from kernel_gate.calls import LARGE, Call
from kernel_gate.counter import Moved, counted
from kernel_gate.report import print_table

# Bytes moved over inputs read once and outputs written once.
LIMITS = {"forward": 1.1, "backward": 1.3, "step": 1.1}
H100_BYTES_PER_SECOND = 3.35e12
HEADINGS = ["call", "type", "K", "kernel", "programs", "minimum", "moved", "ratio", "limit"]
HEADINGS += ["sectors", "accessed", "model us"]


def main() -> int:
    """Print one line a kernel and one a call; 0 when every call is within its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reduced", action="store_true", help="one type, one width")
    arguments = parser.parse_args()
    calls = [
        Call(kind=kind, direction=direction, dtype=dtype, width=width)
        for kind, direction in product(("lightconv", "dynamicconv"), LIMITS)
        for dtype in (["bf16"] if arguments.reduced else ["bf16", "fp32"])
        for width in ([7] if arguments.reduced else [3, 7, 31])
    ]
    rows, exceeded = [], 0
    for call in calls:
        found, ratio = rows_of(call)
        rows += found
        exceeded += not ratio <= LIMITS[call.direction]
    print_table(HEADINGS, rows)
    print(
        f"per call of {calls[0].shape}, a step of {calls[-1].shape}, in the tiles of {LARGE}\n"
        "minimum: of a call, inputs and outputs once; of a kernel, all that it touches once\n"
        "moved: distinct bytes of each program, summed; sectors: the same in 32-byte sectors, and\n"
        "accessed: every load and store, both as multiples of the minimum\n"
        "model us: MODEL, NOT A MEASUREMENT: for those, at 3.35 TB/s (H100)"
    )
    print(f"{len(calls)} calls, {exceeded} above their limit")
    return exceeded > 0


def rows_of(call: Call) -> tuple[list[list[object]], float]:
    """Lines of the table for a call's kernels and the call, and the call's ratio."""
    with counted() as kernels:
        call.run(architecture="sm_90")
    total = Moved()
    for moved in kernels.values():
        for name in ("distinct", "sectors", "accessed", "programs"):
            setattr(total, name, getattr(total, name) + getattr(moved, name))
    rows = [line(call, name, moved, moved.compulsory) for name, moved in kernels.items()]
    seconds = call.scale * total.distinct / H100_BYTES_PER_SECOND
    all_kernels = line(call, "all", total, call.minimum_bytes)
    all_kernels[8], all_kernels[11] = LIMITS[call.direction], f"{1e6 * seconds:.1f}"
    return [*rows, all_kernels], total.distinct / call.minimum_bytes


def line(call: Call, kernel: str, moved: Moved, minimum: int) -> list[object]:
    """Of the table; a kernel by itself has neither limit nor time."""
    ratios = [f"{bytes_ / minimum:.2f}" for bytes_ in (moved.sectors, moved.accessed)]
    return [
        *(call.name, call.dtype, call.width, kernel, moved.programs, minimum, moved.distinct),
        *(f"{moved.distinct / minimum:.2f}", "", *ratios, ""),
    ]


if __name__ == "__main__":
    sys.exit(main())
