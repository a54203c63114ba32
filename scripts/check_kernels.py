"""Everything that can be said of the kernels without a GPU; exits 1 when any of it is wrong.

numerics: random calls of the C++ kernels against loops in float64.
golden: fairseq's numbers, where they are.
aot: the Triton kernels compiled for four GPUs; none may spill.
traffic: the bytes that the Triton kernels move, counted in the interpreter.

A stage's own options: cd scripts; python -m kernel_gate.STAGE --help
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
GOLDEN = SCRIPTS.parents[1] / "shared" / "golden"
STAGES = ("numerics", "golden", "aot", "traffic")


def main() -> int:
    """Run the stages, each in its own process: Triton reads the environment at import."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=" ".join(STAGES))
    parser.add_argument("--reduced", action="store_true", help="what `make check` has time for")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"no such stage: {' '.join(sorted(unknown))}")
    failed = []
    for stage in arguments.stages or STAGES:
        if stage == "golden" and not GOLDEN.is_dir():
            print(f"== golden: not checked, there is no {GOLDEN}")
            continue
        print(f"== {stage}", flush=True)
        start = time.perf_counter()
        command = [sys.executable, *stage_command(stage, reduced=arguments.reduced)]
        done = subprocess.run(command, env=environment(stage), check=False)
        failed += [stage] if done.returncode else []
        verdict = "FAILED" if done.returncode else "passed"
        print(f"== {stage} {verdict} in {time.perf_counter() - start:.0f} s\n")
    return bool(failed)


def stage_command(stage: str, *, reduced: bool) -> list[str]:
    """Arguments of Python."""
    if stage == "golden":
        return [str(SCRIPTS / "check_golden.py"), str(GOLDEN)]
    return ["-m", f"kernel_gate.{stage}", *(["--reduced"] if reduced else [])]


def environment(stage: str) -> dict[str, str]:
    """The caller's, with Triton interpreting or compiling as the stage needs it."""
    triton = {
        "aot": {"TRITON_INTERPRET": "0"},
        "traffic": {"TRITON_INTERPRET": "1"},
    }
    return os.environ | {"PYTHONPATH": str(SCRIPTS)} | triton.get(stage, {})


if __name__ == "__main__":
    sys.exit(main())
