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


def lightconv_step(
    x: Tensor, frames: Tensor, weight: Tensor, *, normalize: bool = True
) -> tuple[Tensor, Tensor]:
    """Causal lightweight convolution of T new positions after K - 1 remembered ones.

    Args:
        x: (N, T, C) new inputs, T >= 1.
        frames: (N, K - 1, C) the inputs before them, oldest first, zeros before the sentence
            begins.
        weight: (H, K) before the softmax.
        normalize: as in `lightconv_reference`.

    Returns:
        y (N, T, C) and the next frames (N, K - 1, C).
    """
    taps = normalized_taps(weight, normalize=normalize)
    return _step(x, frames, taps[None, None])


def dynamicconv_step(
    x: Tensor, frames: Tensor, weight: Tensor, *, normalize: bool = True
) -> tuple[Tensor, Tensor]:
    """Causal dynamic convolution of T new positions; weight (N, T, H, K), see `lightconv_step`."""
    return _step(x, frames, normalized_taps(weight, normalize=normalize))


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


def mask_outside_taps(weight: Tensor, padding_left: int) -> Tensor:
    """Set raw weights of taps outside the sequence to -inf: softmax over the taps inside.

    This is fairseq's `renorm_padding`; the paper keeps the softmax over all taps.

    Args:
        weight: (B, T, H, K) before the softmax.
        padding_left: as in `lightconv_reference`.

    Returns:
        (B, T, H, K).
    """
    time, width = weight.shape[1], weight.shape[3]
    position = torch.arange(time, device=weight.device)[:, None] + torch.arange(
        width, device=weight.device
    )
    inside = (position >= padding_left) & (position < time + padding_left)  # (T, K)
    return weight.masked_fill(~inside[:, None], float("-inf"))


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


def _step(x: Tensor, frames: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    heads, width = taps.shape[-2:]
    history = torch.cat([frames, x], dim=1)  # (N, K - 1 + T, C)
    windows = history.unflatten(-1, (heads, -1)).unfold(1, width, 1)  # (N, T, H, C / H, K)
    y = (windows.to(taps.dtype) @ taps[..., None]).squeeze(-1).flatten(-2)
    return y.to(x.dtype), history[:, x.shape[1] :]
