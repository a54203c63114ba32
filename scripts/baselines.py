"""What the convolutions are timed beside."""

import torch.nn.functional as F
from torch import Tensor


def unfold(x: Tensor, weight: Tensor) -> Tensor:
    """Centred convolution as a product with every window, as fairseq's portable form computes it.

    Args:
        x: (B, T, C) float.
        weight: (H, K) or (B, T, H, K), before the softmax.

    Returns:
        (B, T, C).
    """
    heads, width = weight.shape[-2:]
    padded = F.pad(x, (0, 0, width // 2, width - 1 - width // 2))
    windows = padded.unfold(1, width, 1).unflatten(2, (heads, -1))  # (B, T, H, C / H, K)
    taps = weight.softmax(-1).to(x.dtype)[..., None]
    return (windows @ taps).squeeze(-1).flatten(2)


def attention(x: Tensor, weight: Tensor) -> Tensor:
    """Self-attention of as many heads as weight (..., H, K) has, without its projections."""
    by_head = x.unflatten(-1, (weight.shape[-2], -1)).transpose(1, 2)
    y = F.scaled_dot_product_attention(by_head, by_head, by_head)
    return y.transpose(1, 2).flatten(2)
