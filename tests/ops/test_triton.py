"""The Triton kernels in Triton's interpreter, which needs no GPU, against float64.

The interpreter is chosen while the kernels are imported, so tests/ops/interpreted_*.py run in
processes of their own. It says nothing about races, speed or compiled code: see
tests/ops/test_triton_gpu.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.timeout(900)  # half a minute on a core of its own
@pytest.mark.parametrize("name", ["interpreted_triton.py", "interpreted_triton_loss.py"])
def test_kernels_in_the_interpreter(name: str) -> None:
    file = Path(__file__).with_name(name)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", str(file)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
