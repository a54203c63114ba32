"""Means over a sentence and over what of it was read so far, for mixers that look at all of it."""

import torch
from torch import Tensor

from lightconv_mt.ops.padding import zero_padding


def sentence_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real positions of each sentence; zero where there are none.

    Args:
        x: (B, T, C) float; anything at padding.
        mask: (B, T) bool.

    Returns:
        (B, 1, C) in x's dtype; summed in float32 (float64 for float64 input).
    """
    total = _wide(zero_padding(x, mask)).sum(dim=1, keepdim=True)
    return (total / _count(mask.sum(dim=1, keepdim=True), total)).to(x.dtype)


def running_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real positions up to and with each one, the rest as `sentence_mean`.

    Returns:
        (B, T, C).
    """
    total = _wide(zero_padding(x, mask)).cumsum(dim=1)
    return (total / _count(mask.cumsum(dim=1), total)).to(x.dtype)


def running_mean_step(x: Tensor, total: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """`running_mean` of T new positions after those whose sum is `total`.

    Args:
        x: (N, T, C) float.
        total: (N, C), float32 or float64.
        position: (N,) int64, how many positions of each row were read before.

    Returns:
        (N, T, C) in x's dtype, and the next total.
    """
    totals = total[:, None] + _wide(x).cumsum(dim=1)
    read = position[:, None] + torch.arange(1, x.shape[1] + 1, device=x.device)
    return (totals / _count(read, totals)).to(x.dtype), totals[:, -1]


def _wide(x: Tensor) -> Tensor:
    """In the precision that sums are kept in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _count(number: Tensor, like: Tensor) -> Tensor:
    """Divisors (B, T, 1), at least 1."""
    return number.clamp(min=1)[..., None].to(like.dtype)
