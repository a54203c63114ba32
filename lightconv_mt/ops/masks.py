"""Dropout masks as a pure function of (seed, element): the same in every backend, never stored."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def keep_mask(
    shape: Sequence[int], *, dropout: float, seed: int, device: torch.device | str
) -> Tensor:
    """Which elements survive dropout.

    Element i (row-major) survives when `hash32(i, seed) >= round(dropout * 2**32)`, where hash32 is
    two rounds of the 32-bit finaliser "lowbias32" (Wellons, 2018), keyed by the low and the high
    word of seed.

    Args:
        shape: of the mask, fewer than 2**32 elements.
        dropout: probability of dropping, 0 <= dropout < 1.
        seed: 64 bits.
        device: where the mask is wanted.

    Returns:
        bool tensor of `shape`, True = kept.
    """
    element = torch.arange(prod(shape), dtype=torch.int64, device=device)
    word = lowbias32(element ^ (seed & _WORD))
    word = lowbias32(word ^ (seed >> 32 & _WORD))
    return (word >= round(dropout * 2**32)).view(*shape)


def lowbias32(word: Tensor) -> Tensor:
    """Hash of 32-bit words held in int64."""
    word = (word ^ (word >> 16)) * 0x7FEB352D & _WORD
    word = (word ^ (word >> 15)) * 0x846CA68B & _WORD
    return word ^ (word >> 16)
