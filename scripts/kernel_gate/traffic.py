"""Traffic gate: the bytes that the Triton kernels move, counted, against those they must move."""

import argparse
import sys
from itertools import product

from kernel_gate.calls import COUNTED_FOR, LARGE, LIMITS, Call
from kernel_gate.counter import Moved, counted
from kernel_gate.report import print_table
from kernel_gate.row_calls import CrossEntropyCall, ResidualCall

H100_BYTES_PER_SECOND = 3.35e12
HEADINGS = ["call", "type", "width", "kernel", "programs", "minimum", "moved", "ratio", "limit"]
HEADINGS += ["sectors", "accessed", "model us"]


def main() -> int:
    """Print one line a kernel and one a call; 0 when every call is within its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reduced", action="store_true", help="one type, one width")
    arguments = parser.parse_args()
    types = ["bf16"] if arguments.reduced else ["bf16", "fp32"]
    calls = [
        Call(kind=kind, direction=direction, dtype=dtype, width=width)
        for kind, direction in product(("lightconv", "dynamicconv"), LIMITS)
        for dtype in types
        for width in ([7] if arguments.reduced else [3, 7, 31])
    ]
    row_calls: list[CrossEntropyCall | ResidualCall] = [
        *(
            CrossEntropyCall(dtype=dtype, width=width, paired=paired)
            for paired in (False, True)
            for dtype in types
            for width in ([10_001] if arguments.reduced else [8_000, 10_001, 32_768, 100_003])
        ),
        *(
            ResidualCall(dtype=dtype, direction=direction)
            for direction in ("forward", "backward")
            for dtype in types
        ),
    ]
    rows, exceeded = [], 0
    for call in [*calls, *row_calls]:
        found, ratio = rows_of(call)
        rows += found
        exceeded += not ratio <= call.limit
    print_table(HEADINGS, rows)
    print(
        f"per call of {calls[0].shape}, a step of {calls[-1].shape}, in the tiles of {LARGE};\n"
        f"of cross-entropy {row_calls[0].rows} rows, of the residual {row_calls[-1].rows}\n"
        "minimum: of a call, inputs and outputs once; of a kernel, all that it touches once\n"
        "moved: distinct bytes of each program, summed; sectors: the same in 32-byte sectors, and\n"
        "accessed: every load and store, both as multiples of the minimum; the limit is for these\n"
        "where a program reads again what it read before (cross-entropy), else for moved\n"
        "model us: MODEL, NOT A MEASUREMENT: for those, at 3.35 TB/s (H100)"
    )
    print(f"{len(calls) + len(row_calls)} calls, {exceeded} above their limit")
    return exceeded > 0


def rows_of(call: Call | CrossEntropyCall | ResidualCall) -> tuple[list[list[object]], float]:
    """Lines of the table for a call's kernels and the call, and the call's ratio."""
    with counted() as kernels:
        call.run(architecture=COUNTED_FOR)
    total = Moved()
    for moved in kernels.values():
        for name in ("distinct", "sectors", "accessed", "programs"):
            setattr(total, name, getattr(total, name) + getattr(moved, name))
    rows = [line(call, name, moved, moved.compulsory) for name, moved in kernels.items()]
    counted_bytes = total.distinct if isinstance(call, Call) else total.accessed
    seconds = call.scale * counted_bytes / H100_BYTES_PER_SECOND
    all_kernels = line(call, "all", total, call.minimum_bytes)
    all_kernels[8], all_kernels[11] = call.limit, f"{1e6 * seconds:.1f}"
    return [*rows, all_kernels], counted_bytes / call.minimum_bytes


def line(
    call: Call | CrossEntropyCall | ResidualCall, kernel: str, moved: Moved, minimum: int
) -> list[object]:
    """Of the table; a kernel by itself has neither limit nor time."""
    ratios = [f"{bytes_ / minimum:.2f}" for bytes_ in (moved.sectors, moved.accessed)]
    return [
        *(call.name, call.dtype, call.width, kernel, moved.programs, minimum, moved.distinct),
        *(f"{moved.distinct / minimum:.2f}", "", *ratios, ""),
    ]


if __name__ == "__main__":
    sys.exit(main())
