"""Ahead-of-time gate: every kernel is compiled for every GPU and none may spill registers."""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import triton

from kernel_gate.compile import AotCase, compile_case
from kernel_gate.control import control_case
from kernel_gate.kernels import aot_cases
from kernel_gate.report import print_table
from kernel_gate.resources import Resources
from kernel_gate.targets import TARGETS

HEADINGS = ["kernel", "type", "K", "target", "warps", "registers", "shared", "stack", "scalars"]
HEADINGS += ["occupancy", "seconds", "complaint"]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel on one GPU; without resources when it could not be compiled."""

    name: str
    dtype: str
    width: int
    target: str
    num_warps: int
    must_spill: bool
    seconds: float
    resources: Resources | None = None
    error: str = ""

    @property
    def complaint(self) -> str:
        """Why the gate fails; empty when it does not."""
        if self.resources is None:
            return self.error
        if self.must_spill:
            return "" if self.resources.stack else "no spill seen where there must be one"
        return f"spills {self.resources.stack} bytes" if self.resources.stack else ""

    def row(self) -> list[object]:
        """Of the table."""
        cells: list[object] = [self.name, self.dtype, self.width, self.target, self.num_warps]
        if self.resources is None:
            cells += ["-"] * 5
        else:
            taken = self.resources
            occupancy = TARGETS[self.target].occupancy(taken, num_warps=self.num_warps)
            cells += [taken.registers, taken.shared, taken.stack, taken.spilled_scalars]
            cells += [f"{occupancy:.0%}"]
        return [*cells, f"{self.seconds:.1f}", self.complaint]


def main() -> int:
    """Print one line a kernel and GPU; 0 when the controls and every kernel are right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reduced", action="store_true", help="one GPU and fewer widths and types")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    assert os.environ.get("TRITON_INTERPRET", "0") == "0", "kernels are interpreted, not compiled"
    targets = ["sm_90"] if arguments.reduced else list(TARGETS)
    jobs = [
        (index, target)
        for index, case in sorted(enumerate(cases("sm_90")), key=lambda each: -each[1].width)
        if not arguments.reduced or case.in_reduced
        for target in targets
    ]
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(compile_job, jobs))
    order = list(TARGETS)
    found.sort(key=lambda each: (each.name, each.width, each.dtype, order.index(each.target)))
    print_table(HEADINGS, [each.row() for each in found])
    print(
        f"compiled by triton {triton.__version__}, {len(found)} times; no GPU was involved.\n"
        "stack: bytes a thread spills to memory; scalars: AMD's, parked in vector registers"
    )
    return not passes(found)


def passes(found: Sequence[Compiled]) -> bool:
    """No complaint, and besides the controls there was something to complain about."""
    kernels = [each for each in found if not each.name.startswith("control")]
    complaints = sum(bool(each.complaint) for each in found)
    print(f"{complaints} complaints" if kernels else "no kernel was compiled")
    return bool(kernels) and not complaints


def cases(target: str) -> list[AotCase]:
    """The controls, then the library's kernels."""
    controls = [control_case(TARGETS[target], few_registers=few) for few in (True, False)]
    return [*controls, *aot_cases()]


def compile_job(job: tuple[int, str]) -> Compiled:
    """In a process of its own."""
    index, target = job
    case = cases(target)[index]
    resources, seconds, error = None, 0.0, ""
    try:
        resources, seconds = compile_case(case, TARGETS[target])
    except Exception as exception:  # whatever the compiler raises is the kernel's complaint
        error = f"{type(exception).__name__}: {exception}".splitlines()[0][:100]
    return Compiled(
        name=case.name,
        dtype=case.dtype,
        width=case.width,
        target=target,
        num_warps=case.options.get("num_warps", 4),
        must_spill=case.must_spill,
        seconds=seconds,
        resources=resources,
        error=error,
    )


if __name__ == "__main__":
    sys.exit(main())
