"""The clocks in the parts of the C++ kernels."""

import pytest
import torch
from cpp_kernels import need_library

from bench_parts import PARTS, timed
from lightconv_mt.ops import native
from lightconv_mt.ops.library import load_library


def test_parts_are_within_the_whole_and_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    expected_library = need_library()
    library = load_library(sources=("parts.cpp",))
    x, upstream = torch.randn(2, 2, 300, 64)
    weight = torch.randn(2, 300, 4, 7)

    def backward() -> tuple[torch.Tensor, torch.Tensor]:
        return native.dynamicconv_native_backward(upstream, x, weight, padding_left=3)

    monkeypatch.setattr(native, "load_library", lambda: expected_library)
    expected = backward()
    monkeypatch.setattr(native, "load_library", lambda: library)
    assert all(torch.equal(*pair) for pair in zip(backward(), expected, strict=True))
    total, parts = timed(backward, library)
    seconds = dict(zip(PARTS, parts, strict=True))
    assert seconds.pop("copies") == 0.0  # 16 channels fill vectors: rows stay
    assert min(seconds.values()) > 0.0
    assert sum(parts) < total
