"""Bytes counted of a kernel whose bytes are known."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# Two programs of 16 read 20 elements each (4 of them twice over both), one of them again, write 16
# without the last, and add to one counter.
TOY = """
import torch
import triton
import triton.language as tl
from kernel_gate.counter import counted

@triton.jit
def toy_kernel(x, y, total, SIZE: tl.constexpr):
    first = tl.program_id(0) * SIZE
    lane = tl.arange(0, 32)
    row = tl.load(x + first + lane, mask=lane < SIZE + 4, other=0.0)
    again = tl.load(x + first)
    tl.store(y + first + lane, row + again, mask=(lane < SIZE) & (first + lane < 31))
    tl.atomic_add(total, 1)

x, y = torch.ones(36, dtype=torch.float16), torch.zeros(32)
total = torch.zeros(1, dtype=torch.int32)
with counted() as kernels:
    toy_kernel[(2,)](x, y, total, SIZE=16)
assert y.tolist() == [2.0] * 31 + [0.0] and total.item() == 2
(name, moved), = kernels.items()
print(name, moved.programs, moved.distinct, moved.accessed, moved.compulsory)
"""


def test_a_known_kernel_is_counted_exactly(tmp_path: Path) -> None:
    script = tmp_path / "toy.py"
    script.write_text(TOY)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    distinct = 2 * (20 * 2) + 31 * 4 + 2 * (4 + 4)
    accessed = distinct + 2 * 2
    compulsory = 36 * 2 + 31 * 4 + 4 + 4
    assert done.stdout.split() == ["toy_kernel", "2", *map(str, (distinct, accessed, compulsory))]
