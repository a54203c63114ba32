"""Zeros where a batch has padding."""

from typing import Any

import torch
from torch import Tensor

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def zero_padding(x: Tensor, mask: Tensor) -> Tensor:
    """X with zeros at padding, whatever stood there.

    A CPU's `masked_fill` under a mask that is broadcast takes one element at a time, ten times as
    long as a bitwise product; what torch compiles or exports has the former.

    Args:
        x: (B, T, C) float; anything, even NaN, at padding.
        mask: (B, T) bool, True = real token.

    Returns:
        (B, T, C) in x's dtype; its gradient is zero at padding too.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return x.masked_fill(~mask[..., None], 0.0)
    zeroed: Tensor = _ZeroPadding.apply(x, mask)  # type: ignore[no-untyped-call]
    return zeroed


def _kept_bits(x: Tensor, mask: Tensor) -> Tensor:
    bits = _BITS[x.element_size()]
    return (x.view(bits) & -mask[..., None].to(bits)).view(x.dtype)  # -1 has all bits set


class _ZeroPadding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.mask = mask
        return _kept_bits(x, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _ZeroPadding.apply(grad, ctx.mask), None  # type: ignore[no-untyped-call]
