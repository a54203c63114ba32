"""Ahead-of-time gate: every kernel is compiled for every GPU and none may spill registers."""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context

import triton

from kernel_gate.calls import TYPES, Call
from kernel_gate.compile import Launch, recorded
from kernel_gate.control import launch_control
from kernel_gate.report import print_table
from kernel_gate.resources import Resources
from kernel_gate.row_calls import CrossEntropyCall, ResidualCall
from kernel_gate.targets import TARGETS

# One width of each class that the kernels are tiled for.
WIDTHS = (3, 7, 15, 31, 255)
DIRECTIONS = ("backward", "forward", "step")
# Rows that wide loads can read, and rows that they cannot.
VOCABULARIES = (32_768, 32_003)
HEADINGS = ["call", "kernel", "type", "width", "target", "warps", "registers", "shared", "stack"]
HEADINGS += ["scalars", "occupancy", "seconds", "complaint"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Kernels of one call, or a control, on one GPU."""

    target: str
    call: Call | CrossEntropyCall | ResidualCall | None = None
    must_spill: bool = False

    def launches(self) -> list[Launch]:
        """What it launches."""
        with recorded() as launches:
            if self.call is None:
                launch_control(TARGETS[self.target], few_registers=self.must_spill)
            else:
                self.call.run(architecture=self.target)
        return launches


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel on one GPU; without resources when it could not be compiled."""

    kernel: str
    job: Job
    num_warps: int = 0
    seconds: float = 0.0
    resources: Resources | None = None
    error: str = ""

    @property
    def complaint(self) -> str:
        """Why the gate fails; empty when it does not."""
        if self.resources is None:
            return self.error
        if self.job.must_spill:
            return "" if self.resources.stack else "no spill seen where there must be one"
        return f"spills {self.resources.stack} bytes" if self.resources.stack else ""

    def row(self) -> list[object]:
        """Of the table."""
        call = self.job.call
        room = "few registers" if self.job.must_spill else "many registers"
        cells: list[object] = [call.name, self.kernel] if call else [room, self.kernel]
        cells += [call.dtype, call.width] if call else ["fp32", "-"]
        cells += [self.job.target, self.num_warps]
        if self.resources is None:
            cells += ["-"] * 5
        else:
            taken = self.resources
            occupancy = TARGETS[self.job.target].occupancy(taken, num_warps=self.num_warps)
            cells += [taken.registers, taken.shared, taken.stack, taken.spilled_scalars]
            cells += [f"{occupancy:.0%}"]
        return [*cells, f"{self.seconds:.1f}", self.complaint]


def main() -> int:
    """Print one line a kernel and GPU; 0 when the controls and every kernel are right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reduced", action="store_true", help="one GPU, one type, two widths")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    assert os.environ.get("TRITON_INTERPRET", "0") == "0", "kernels are interpreted, not compiled"
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        done = pool.map(compile_job, jobs(reduced=arguments.reduced))
        found = [compiled for group in done for compiled in group]
    print_table(HEADINGS, sorted([each.row() for each in found], key=by_kernel))
    print(
        f"compiled by triton {triton.__version__}; no GPU was involved\n"
        "stack: bytes that a thread spills to memory; scalars: AMD's, parked in vector registers"
    )
    return not passes(found)


def by_kernel(row: Sequence[object]) -> list[str]:
    """Order of the table; within a kernel that of the jobs."""
    return [str(cell) for cell in row[:2]]


def jobs(*, reduced: bool) -> list[Job]:
    """The controls first, then what takes longest."""
    targets = ["sm_90"] if reduced else list(TARGETS)
    controls = [
        Job(target=target, must_spill=must_spill)
        for target in targets
        for must_spill in (True, False)
    ]
    types = ["bf16"] if reduced else list(TYPES)
    calls: list[Call | CrossEntropyCall | ResidualCall] = [
        *(
            Call(kind=kind, direction=direction, dtype=dtype, width=width)
            for width in (WIDTHS[3:0:-2] if reduced else WIDTHS[::-1])
            for kind, direction in product(("lightconv", "dynamicconv"), DIRECTIONS)
            for dtype in types
        ),
        *(
            CrossEntropyCall(dtype=dtype, width=width, paired=paired)
            for width in VOCABULARIES[reduced:]
            for paired in (True, False)
            for dtype in types
        ),
        *(
            ResidualCall(dtype=dtype, direction=direction)
            for direction in DIRECTIONS[:2]
            for dtype in types
        ),
    ]
    return controls + [Job(target=target, call=call) for call in calls for target in targets]


def compile_job(job: Job) -> list[Compiled]:
    """In a process of its own."""
    found = []
    kernel, num_warps = job.call.name if job.call else "control", 0
    try:
        for launch in job.launches():
            kernel, num_warps = launch.kernel.__name__, launch.num_warps
            resources, seconds = launch.compile(TARGETS[job.target])
            compiled = Compiled(
                kernel=kernel, job=job, num_warps=num_warps, resources=resources, seconds=seconds
            )
            found.append(compiled)
    except Exception as exception:  # whatever the compiler raises is the kernel's complaint
        error = f"{type(exception).__name__}: {str(exception).strip().splitlines()[-1]}"
        found.append(Compiled(kernel=kernel, job=job, num_warps=num_warps, error=error))
    return found


def passes(found: Sequence[Compiled]) -> bool:
    """No complaint, and besides the controls there was something to complain about."""
    kernels = sum(each.job.call is not None for each in found)
    complaints = sum(bool(each.complaint) for each in found)
    print(f"{kernels} kernels and {len(found) - kernels} controls, {complaints} complaints")
    return kernels > 0 and complaints == 0


if __name__ == "__main__":
    sys.exit(main())
