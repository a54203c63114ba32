"""Run what needs a GPU: the tests marked gpu, random calls of the kernels, compute-sanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["-m", "pytest", "-q", "-m", "gpu", "tests"]
CALLS = ["-m", "kernel_gate.numerics", "--backend=triton", "--device=cuda"]


def main() -> int:
    """Exit with the number of the first that fails; without a GPU say so and claim nothing."""
    if not torch.cuda.is_available():
        print("test-gpu: there is no GPU here; nothing was run")
        return 0
    commands = [[sys.executable, *TESTS], [sys.executable, *CALLS]]
    if sanitizer := shutil.which("compute-sanitizer"):
        watched = [sys.executable, *CALLS, "--calls=100"]
        for tool in ("memcheck", "racecheck"):
            commands.append([sanitizer, f"--tool={tool}", "--error-exitcode=1", *watched])
    else:
        print("test-gpu: there is no compute-sanitizer here; races and bounds are not checked")
    for command in commands:
        print("==", *command, flush=True)
        environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
        if status := subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
