"""The definition of both convolutions: plain torch, to be read beside the paper.

Every faster backend is tested against these functions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightconv_mt.ops.masks import keep_mask


def lightconv_reference(
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Lightweight convolution, Wu et al. (2019), section 3.

    `y[b, t, c] = sum_j softmax(weight[h(c)])[j] * x[b, t - padding_left + j, c]` with `h(c) = c //
    (C / H)`. The softmax runs over all K taps, then taps outside the sequence are dropped, so their
    mass is lost.

    Args:
        x: (B, T, C) float, any T >= 0.
        weight: (H, K) float, before the softmax.
        padding_left: K - 1 for causal, K // 2 for centred, any of 0..K-1 otherwise.
        normalize: take the softmax over K; without it the raw weights convolve.
        dropout: probability of dropping a normalised weight; one draw per (head, tap), rescaled by
            1 / (1 - p).
        seed: of the dropout mask, which is a pure function of (seed, element).

    Returns:
        (B, T, C) in x's dtype; products are summed in float32 (float64 for float64 input).
    """
    taps = normalized_taps(weight, normalize=normalize, dropout=dropout, seed=seed)  # (H, K)
    return _convolve(x, taps[None, None], padding_left)


def dynamicconv_reference(
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Dynamic convolution, Wu et al. (2019), section 4: each position with its own kernel.

    `y[b, t, c] = sum_j softmax(weight[b, t, h(c)])[j] * x[b, t - padding_left + j, c]`. The softmax
    runs over all K taps before those outside the sequence are dropped (fairseq since 2022 trains
    with another normalisation).

    Args:
        x: (B, T, C) float.
        weight: (B, T, H, K) float, predicted, before the softmax.
        padding_left: as in `lightconv_reference`.
        normalize: as in `lightconv_reference`.
        dropout: one draw per (sentence, position, head, tap), rescaled by 1 / (1 - p).
        seed: of the dropout mask.

    Returns:
        (B, T, C) in x's dtype.
    """
    taps = normalized_taps(weight, normalize=normalize, dropout=dropout, seed=seed)  # (B, T, H, K)
    return _convolve(x, taps, padding_left)


def lightconv_step_reference(
    x: Tensor, ring: Tensor, position: Tensor, weight: Tensor, *, normalize: bool = True
) -> Tensor:
    """Causal lightweight convolution of T new positions after those a ring remembers.

    Args:
        x: (N, T, C) new inputs, one position after the other.
        ring: (N, K - 1, C) in x's dtype, the inputs before them: that of position p in slot p % (K
            - 1). Zeros before the sentence begins. Overwritten with the new inputs.
        position: (N,) int64, how many positions of each row were read before.
        weight: (H, K) before the softmax.
        normalize: as in `lightconv_reference`.

    Returns:
        y (N, T, C) in x's dtype.
    """
    taps = normalized_taps(weight, normalize=normalize)
    return _step(x, ring, position, taps.expand(*x.shape[:2], *taps.shape))


def dynamicconv_step_reference(
    x: Tensor, ring: Tensor, position: Tensor, weight: Tensor, *, normalize: bool = True
) -> Tensor:
    """As `lightconv_step_reference`, each new position with its own kernel: weight (N, T, H, K)."""
    return _step(x, ring, position, normalized_taps(weight, normalize=normalize))


def normalized_taps(
    weight: Tensor, *, normalize: bool, dropout: float = 0.0, seed: int = 0
) -> Tensor:
    """Softmax over the last axis, then weight dropout, in float32 (float64 for float64 weights)."""
    taps = weight if weight.dtype == torch.float64 else weight.float()
    if normalize:
        taps = taps.softmax(dim=-1)
    if dropout > 0.0:
        keep = keep_mask(taps.shape, dropout=dropout, seed=seed, device=taps.device)
        taps = taps * keep / (1.0 - dropout)
    return taps


def mask_outside_taps(weight: Tensor, padding_left: int, mask: Tensor | None = None) -> Tensor:
    """Set raw weights of taps outside the sentence to -inf: softmax over the taps inside.

    This is fairseq's `renorm_padding`; the paper keeps the softmax over all taps. A position's own
    tap is always inside, so that the softmax of padding stays finite.

    Args:
        weight: (B, T, H, K) before the softmax.
        padding_left: as in `lightconv_reference`.
        mask: (B, T) bool, True = real token; None: all are.

    Returns:
        (B, T, H, K).
    """
    time, width = weight.shape[1], weight.shape[3]
    if mask is None:
        mask = torch.ones(weight.shape[:2], dtype=torch.bool, device=weight.device)
    padded = F.pad(mask, (padding_left, width - 1 - padding_left))
    inside = torch.stack([padded[:, tap : tap + time] for tap in range(width)], -1)  # (B, T, K)
    inside[..., padding_left] = True
    return weight.masked_fill(~inside[:, :, None], float("-inf"))


def _convolve(x: Tensor, taps: Tensor, padding_left: int) -> Tensor:
    """Sum of K shifted copies; x (B, T, C), taps broadcastable to (B, T, H, K)."""
    (_, time, channels), (heads, width) = x.shape, taps.shape[-2:]
    wide = x.to(taps.dtype)
    padded = F.pad(wide, (0, 0, padding_left, width - 1 - padding_left)).unflatten(
        -1, (heads, channels // heads)
    )
    y = torch.zeros_like(wide).unflatten(-1, (heads, channels // heads))  # (B, T, H, C / H)
    for tap in range(width):
        y = y + taps[..., tap, None] * padded[:, tap : tap + time]
    return y.flatten(-2).to(x.dtype)


def _step(x: Tensor, ring: Tensor, position: Tensor, taps: Tensor) -> Tensor:
    """Taps are (N, T, H, K)."""
    slots, heads = ring.shape[1], taps.shape[2]
    row = torch.arange(x.shape[0], device=x.device)
    age = torch.arange(slots, device=x.device)
    y = torch.empty_like(x)
    for time in range(x.shape[1]):
        window = x[:, time, None]
        if slots:
            # The oldest input lies where the new one goes.
            slot = (position[:, None] + time + age) % slots  # (N, K - 1)
            window = torch.cat([ring[row[:, None], slot], window], dim=1)  # (N, K, C)
            ring[row, slot[:, 0]] = x[:, time]
        by_head = window.unflatten(-1, (heads, -1)).to(taps.dtype)  # (N, K, H, C / H)
        y[:, time] = torch.einsum("nkhc,nhk->nhc", by_head, taps[:, time]).flatten(1)
    return y
