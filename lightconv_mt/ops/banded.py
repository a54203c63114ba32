"""Plain torch at its fastest: banded products for short sequences, shifted sums for long ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightconv_mt.ops.reference import dynamicconv_reference, lightconv_reference, normalized_taps

# The band costs T products a position, the shifted sum K slower ones: they meet near this length on
# CPUs.
LONGEST_BAND = 160


def lightconv_banded(
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Same as `lightconv_reference`, by one (T, T) band per head up to `LONGEST_BAND` positions."""
    time = x.shape[1]
    if not 0 < time <= LONGEST_BAND:
        return lightconv_reference(
            x, weight, padding_left=padding_left, normalize=normalize, dropout=dropout, seed=seed
        )
    taps = normalized_taps(weight, normalize=normalize, dropout=dropout, seed=seed).to(x.dtype)
    heads = taps.shape[0]
    rows = band(taps[:, None].expand(-1, time, -1), padding_left)  # (H, T, T)
    by_head = x.unflatten(-1, (heads, -1)).permute(2, 1, 0, 3)  # (H, T, B, C / H)
    y = (rows @ by_head.flatten(2)).unflatten(-1, (x.shape[0], -1))  # (H, T, B, C / H)
    return y.permute(2, 1, 0, 3).flatten(2)


def dynamicconv_banded(
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Same as `dynamicconv_reference`; a (T, T) band a sentence and head up to `LONGEST_BAND`."""
    time = x.shape[1]
    if not 0 < time <= LONGEST_BAND:
        return dynamicconv_reference(
            x, weight, padding_left=padding_left, normalize=normalize, dropout=dropout, seed=seed
        )
    taps = normalized_taps(weight, normalize=normalize, dropout=dropout, seed=seed).to(x.dtype)
    heads = taps.shape[2]
    rows = band(taps.transpose(1, 2), padding_left)  # (B, H, T, T)
    y = rows @ x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, H, T, C / H)
    return y.transpose(1, 2).flatten(2)


def band(taps: Tensor, padding_left: int) -> Tensor:
    """Kernels as rows of a banded matrix: `rows[t, s] = taps[t, s - t + padding_left]`, else 0.

    Args:
        taps: (..., T, K), T >= 1.
        padding_left: column of the diagonal.

    Returns:
        (..., T, T).
    """
    time, width = taps.shape[-2:]
    # T zeros after each row, read back in rows one shorter: row t moves right by t.
    skewed = F.pad(taps, (0, time)).flatten(-2)[..., : time * (time + width - 1)]
    return torch.unflatten(skewed, -1, (time, time + width - 1))[
        ..., padding_left : padding_left + time
    ]
