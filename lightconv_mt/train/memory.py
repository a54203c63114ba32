"""Memory: what there is, and keeping freed memory, so that no step asks the kernel for it anew."""

import ctypes
import os
import sys
from pathlib import Path

import torch

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_NEVER, _AHEAD = 2**31 - 1, 2**28
# A step needs some dozens; a new one takes 0.3 ms, with tiles more (PIECES of ops/products.py).
_KERNELS_KEPT = 128


def keep_freed_memory() -> bool:
    """Tell glibc to serve large tensors from memory it keeps; the process stays near its peak.

    Returns:
        Whether the C library is one that can be told.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, _NEVER), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _AHEAD))
    return all(mallopt(option, value) == 1 for option, value in settings)


def bound_kernel_cache() -> None:
    """Keep fewer of oneDNN's matrix products ready; to be called before the first one.

    oneDNN, and torch's layer over it, keep one of some 0.25 MB for every shape, 1,024 each if they
    are not told otherwise, and batches have ever other shapes. The user's own settings count more.
    """
    for capacity in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(capacity, str(_KERNELS_KEPT))


def give_back_freed_memory() -> None:
    """Hand what `keep_freed_memory` keeps back to the kernel, where the C library can do that.

    Batches of ever other lengths leave holes between what lives on, and without this a long run
    comes to hold several times what a step needs.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def available_memory(device: torch.device) -> int | None:
    """Bytes of a device that this process may still take; None where the system does not tell.

    On CPUs of Linux, the free memory of the machine, or of the process's control group if that has
    less.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (kib,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        free = 1024 * int(kib)
    except (OSError, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # there is no such group, or its limit is "max"
        return free


def held_memory(device: torch.device) -> int:
    """Bytes of a device that this process holds; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    try:
        (kib,) = (
            line.split()[1]
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmRSS:")
        )
        return 1024 * int(kib)
    except (OSError, ValueError):
        return 0
