"""Run what needs a GPU: the tests marked gpu, random calls of the kernels, compute-sanitizer.

Nearly all of the time is the compiler's, a kernel for every width and type, so all of it is shared
among processes. Exits 1 when anything failed; without a GPU says so and claims nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from arguments import positive

ROOT = Path(__file__).resolve().parents[1]
NUMERICS = ["-m", "kernel_gate.numerics", "--backend=triton", "--device=cuda"]
# Of the calls, compute-sanitizer watches one in so many.
WATCHED = 10


def main() -> int:
    """Tests first, then the calls."""
    parser = argparse.ArgumentParser(description=__doc__)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=positive, default=cores, help="processes at a time")
    parser.add_argument("--calls", type=positive, default=1000, help="random calls of the kernels")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("test-gpu: there is no GPU here; nothing was run")
        return 0
    workers: int = arguments.workers
    tests = ["-m", "pytest", "-q", "-m", "gpu", "-n", str(workers), "--dist=worksteal", "tests"]
    failed = report([sys.executable, *tests], run([sys.executable, *tests], captured=False))
    commands = list(call_commands(arguments.calls, workers))
    with ThreadPoolExecutor(workers) as pool:
        for command, done in zip(commands, pool.map(run, commands), strict=True):
            failed |= report(command, done)
    return int(failed)


def call_commands(calls: int, workers: int) -> Iterator[list[str]]:
    """Random calls shared among workers, each with seeds of its own, watched ones first."""

    def share(total: int, parts: int, first_seed: int) -> Iterator[list[str]]:
        for part in range(parts):
            yield [*NUMERICS, f"--calls={-(-total // parts)}", f"--seed={first_seed + part}"]

    if sanitizer := shutil.which("compute-sanitizer"):
        for place, tool in enumerate(("memcheck", "racecheck"), start=1):
            watch = [sanitizer, f"--tool={tool}", "--error-exitcode=1"]
            for words in share(calls // WATCHED, max(workers // 2, 1), 1000 * place):
                yield [*watch, sys.executable, *words]
    else:
        print("test-gpu: there is no compute-sanitizer here; races and bounds are not checked")
    for words in share(calls, workers, 1):
        yield [sys.executable, *words]


def run(command: list[str], *, captured: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command, its output kept or shown at once."""
    path = os.pathsep.join(filter(None, [str(ROOT / "scripts"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    output = subprocess.PIPE if captured else None
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
    )


def report(command: list[str], done: subprocess.CompletedProcess[str]) -> bool:
    """Print a command and what was kept of its output; whether it failed."""
    print("==", *command, "FAILED" if done.returncode else "passed", flush=True)
    if done.stdout:
        print(done.stdout, flush=True)
    return done.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
