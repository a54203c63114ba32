"""The C++ kernels for tests, which are skipped where there is no compiler."""

from typing import Any

import pytest

from lightconv_mt.ops import Backend
from lightconv_mt.ops.library import NativeUnavailableError, load_library


def need_library(march: str = "native") -> Any:
    """The kernels for a machine; skips the test where they cannot be built."""
    try:
        return load_library(march)
    except NativeUnavailableError as error:
        pytest.skip(f"no native kernels for {march}: {error}")


def cpu_backends() -> list[Backend]:
    """Plain torch, and C++ where there is a compiler; one that fails fails the tests."""
    try:
        load_library()
    except NativeUnavailableError as error:
        if "no C++ compiler" not in str(error):
            raise
        return [Backend.torch]
    return [Backend.torch, Backend.native]
