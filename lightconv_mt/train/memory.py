"""Keeps freed memory in the process, so that every step does not ask the kernel for it anew."""

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_NEVER, _AHEAD = 2**31 - 1, 2**28


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
