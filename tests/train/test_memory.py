"""Memory that is kept, and given back: holes between what lives on too."""

import subprocess
import sys

import pytest

HOLES = """
import torch
from lightconv_mt.train.memory import give_back_freed_memory, held_memory, keep_freed_memory

assert keep_freed_memory()
tensors = [torch.ones(2**20) for _ in range(100)]  # 4 MiB each
cpu = torch.device("cpu")
full = held_memory(cpu)
del tensors[::2]
kept = held_memory(cpu)
give_back_freed_memory()
print(full, kept, held_memory(cpu), sum(int(each.sum()) for each in tensors))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux's")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    # A process of its own: the settings last as long as the process.
    done = subprocess.run(
        [sys.executable, "-c", HOLES], capture_output=True, text=True, check=True, timeout=120
    )
    full, kept, left, total = map(int, done.stdout.split())
    freed = 50 * 2**22
    assert total == 50 * 2**20, "what lives on is as it was"
    assert full - kept < 0.1 * freed
    assert kept - left > 0.9 * freed
