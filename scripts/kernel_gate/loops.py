"""Both convolutions and their gradients as plain loops in float64, sharing no code with ops/."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a convolution and its backward give, in the shapes of y, x and weight."""

    y: Array
    grad_x: Array
    grad_weight: Array


def convolve(
    x: Array,
    weight: Array,
    grad_y: Array,
    *,
    padding_left: int,
    normalize: bool,
    dropout: float,
    seed: int,
) -> tuple[Results, Results]:
    """The exact results, and the size of what is added up in each of their elements.

    Args:
        x: (B, T, C).
        weight: (H, K) shared by all positions, or (B, T, H, K).
        grad_y: (B, T, C).
        padding_left: tap of a position's own input.
        normalize: softmax over K.
        dropout: probability of dropping a weight.
        seed: of the dropout mask.

    Returns:
        The results, and for each element the sum of the absolute values of its terms: rounding
        errors of any order of summation are a few units in the last place of that.
    """
    softmax = _softmax(weight) if normalize else weight
    kept = survivors(weight.shape, dropout, seed) / (1.0 - dropout)
    taps = np.broadcast_to(softmax * kept, x.shape[:2] + weight.shape[-2:])  # (B, T, H, K)
    # The terms and their absolute values go through one loop, as more sentences.
    doubled = [np.concatenate([each, np.abs(each)]) for each in (x, taps, grad_y)]
    y, grad_x, grad_taps = _loop(doubled[0], doubled[1], doubled[2], padding_left)
    both = []
    for half in (slice(0, len(x)), slice(len(x), None)):
        shared = grad_taps[half].sum((0, 1)) if weight.ndim == 2 else grad_taps[half]
        both.append(Results(y=y[half], grad_x=grad_x[half], grad_weight=shared * kept))
    exact, sums = both
    if normalize:
        mean, mean_of_sums = (
            (softmax * each.grad_weight).sum(-1, keepdims=True) for each in (exact, sums)
        )
        exact = replace(exact, grad_weight=softmax * (exact.grad_weight - mean))
        sums = replace(sums, grad_weight=softmax * (sums.grad_weight + mean_of_sums))
    return exact, sums


def _loop(x: Array, taps: Array, grad_y: Array, padding_left: int) -> tuple[Array, Array, Array]:
    """y, the gradient of x and that of the taps: Wu et al. (2019), section 3, tap by tap."""
    (batch, time, channels), (heads, width) = x.shape, taps.shape[2:]
    by_head = batch, time, heads, channels // heads
    x, grad_y = x.reshape(by_head), grad_y.reshape(by_head)
    y, grad_x, grad_taps = np.zeros(by_head), np.zeros(by_head), np.zeros(taps.shape)
    for t in range(time):
        for j in range(width):
            s = t - padding_left + j
            if 0 <= s < time:
                tap = taps[:, t, :, j, None]
                y[:, t] += tap * x[:, s]
                grad_x[:, s] += tap * grad_y[:, t]
                grad_taps[:, t, :, j] = (grad_y[:, t] * x[:, s]).sum(-1)
    return y.reshape(batch, time, channels), grad_x.reshape(batch, time, channels), grad_taps


def _softmax(weight: Array) -> Array:
    powers = np.exp(weight - weight.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def survivors(shape: tuple[int, ...], dropout: float, seed: int) -> NDArray[np.bool_]:
    """Weights that dropout keeps: lowbias32 of the element's number, keyed by seed's two words."""
    word = np.arange(np.prod(shape), dtype=np.uint32)
    for key in (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF):
        word ^= np.uint32(key)
        word ^= word >> np.uint32(16)
        word *= np.uint32(0x7FEB352D)
        word ^= word >> np.uint32(15)
        word *= np.uint32(0x846CA68B)
        word ^= word >> np.uint32(16)
    return (word >= round(dropout * 2**32)).reshape(shape)
