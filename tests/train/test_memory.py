"""Memory that is kept, and given back: holes between what lives on too."""

import os
import subprocess
import sys

import pytest
import torch

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


SHAPES = """
import torch
from lightconv_mt.assemble import start_runtime
from lightconv_mt.config import RuntimeConfig


def code_in_memory():  # kernels that oneDNN wrote: mappings that run and belong to no file
    spans = 0
    for line in open("/proc/self/maps"):
        addresses, rights, *rest = line.split()
        if "x" in rights and len(rest) < 4:
            start, end = (int(address, 16) for address in addresses.split("-"))
            spans += end - start
    return spans


start_runtime(RuntimeConfig(threads=1, keep_memory=False))
weight = torch.ones(256, 256, dtype=torch.bfloat16)
held = []
for rows in range(1000, 2600):
    torch.ones(rows, 256, dtype=torch.bfloat16) @ weight
    if rows % 400 == 399:
        held.append(code_in_memory() // 2**10)
print(*held)
"""


def kernels_over_shapes(**environment: str) -> list[int]:
    """KiB of kernels held after every 400 of 1,600 products in bf16, no two of one shape.

    The kernels' own code, most of what they take: the heap's size depends on where malloc finds
    room. The variables are those of the C libraries.
    """
    done = subprocess.run(
        [sys.executable, "-c", SHAPES],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this CPU has no bf16 products of oneDNN",
)
def test_products_of_ever_new_shapes_do_not_pile_up() -> None:
    first, *_, end = kernels_over_shapes()
    assert 0 < end < 1.5 * first
    ours = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"
    *_, theirs = kernels_over_shapes(**dict.fromkeys(ours, "1024"))
    assert theirs > 3 * end, "the user's settings count"
