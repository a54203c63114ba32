"""One name for every implementation of the convolutions; `auto` is resolved once, and logged."""

import logging
from enum import Enum

from torch import Tensor

from lightconv_mt.ops.banded import dynamicconv_banded, lightconv_banded
from lightconv_mt.ops.reference import dynamicconv_reference, lightconv_reference

logger = logging.getLogger(__name__)


class Backend(Enum):
    """Implementations of `lightconv` and `dynamicconv`; `auto` takes the fastest that runs here."""

    auto = "auto"
    reference = "reference"
    torch = "torch"


def resolve_backend(requested: Backend) -> Backend:
    """Turn `auto` into a backend and log the choice; any other request is returned as it is."""
    if requested is not Backend.auto:
        return requested
    logger.info(
        "convolution kernels: plain torch "
        "(banded products for short sequences, shifted sums for long ones)"
    )
    return Backend.torch


def lightconv(
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
    backend: Backend = Backend.auto,
) -> Tensor:
    """Lightweight convolution; arguments and result as `ops.reference.lightconv_reference`.

    Args:
        x: (B, T, C) float.
        weight: (H, K) float, before the softmax.
        padding_left: 0..K-1.
        normalize: softmax over the K taps.
        dropout: weight dropout probability.
        seed: of the dropout mask.
        backend: which implementation; all agree.

    Returns:
        (B, T, C) in x's dtype.
    """
    _check(x, heads=weight.shape[0], width=weight.shape[1], padding_left=padding_left)
    function = lightconv_reference if backend is Backend.reference else lightconv_banded
    return function(
        x, weight, padding_left=padding_left, normalize=normalize, dropout=dropout, seed=seed
    )


def dynamicconv(
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
    backend: Backend = Backend.auto,
) -> Tensor:
    """Dynamic convolution; weight (B, T, H, K) before the softmax, the rest as `lightconv`."""
    if weight.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"dynamicconv: weight is for {tuple(weight.shape[:2])} positions, "
            f"x has {tuple(x.shape[:2])}"
        )
    _check(x, heads=weight.shape[2], width=weight.shape[3], padding_left=padding_left)
    function = dynamicconv_reference if backend is Backend.reference else dynamicconv_banded
    return function(
        x, weight, padding_left=padding_left, normalize=normalize, dropout=dropout, seed=seed
    )


def _check(x: Tensor, *, heads: int, width: int, padding_left: int) -> None:
    if x.shape[-1] % heads:
        raise ValueError(
            f"{x.shape[-1]} channels cannot be shared by {heads} heads; "
            f"give a divisor of the channels"
        )
    if not 0 <= padding_left < width:
        raise ValueError(
            f"padding_left is {padding_left} "
            f"but must lie in 0..{width - 1} for kernel width {width}"
        )
