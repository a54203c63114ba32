"""Dropout of activations with a cheap mask on CPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, probability: float, *, training: bool) -> Tensor:
    """Zero elements with the given probability and rescale the others by 1 / (1 - p).

    torch draws one random number an element on a single CPU thread; here one 64-bit draw serves
    four elements, each compared with `round(p * 2**16)`, so on CPUs the probability is exact to
    2**-16 and the rescaling uses that value.

    Args:
        x: any shape, float.
        probability: 0 <= p < 1.
        training: without it x is returned as it is.

    Returns:
        x's shape and dtype.
    """
    if not training or probability == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    threshold = round(probability * 2**16)
    draws = (
        torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    )
    keep = (draws[: x.numel()] >= threshold - 2**15).view(x.shape)
    return x * keep.to(x.dtype).mul_(2**16 / (2**16 - threshold))
