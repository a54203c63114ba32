"""Attention to a window around each position, in time linear in the length."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Queries that share a piece of the keys: few cost many small products, many cost masked ones.
SMALLEST_BLOCK = 32


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    window: int,
    padding_left: int,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention of position t to t - padding_left + j for j < window.

    Long sequences are cut into blocks of queries, each with the keys that its windows reach.

    Args:
        query: (B, H, T, D) float.
        key: (B, H, T, D).
        value: (B, H, T, D).
        mask: (B, T) bool, True = real token; others are attended to only by themselves.
        window: positions that each one sees, itself included.
        padding_left: window - 1 for causal, window // 2 for centred, any of 0..window-1 otherwise.
        dropout: probability of dropping an attention weight.

    Returns:
        (B, H, T, D), finite everywhere.
    """
    time = query.shape[2]
    block = max(window, SMALLEST_BLOCK)
    position = torch.arange(time, device=query.device)
    if time <= 2 * block:
        tap = position - position[:, None] + padding_left  # (T, T)
        visible = _visible(tap, mask, window, padding_left)[:, None]  # (B, 1, T, T)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, dropout_p=dropout
        )
    blocks = -(-time // block)
    span, right = block + window - 1, blocks * block - time
    edges = (padding_left, right + window - 1 - padding_left)
    queries = F.pad(query, (0, 0, 0, right)).unflatten(2, (blocks, block))
    keys, values = (
        F.pad(each, (0, 0, *edges)).unfold(2, span, block).transpose(-1, -2)
        for each in (key, value)
    )  # (B, H, blocks, span, D)
    tap = position[:span] - position[:block, None]  # (block, span)
    visible = _visible(tap, F.pad(mask, edges).unfold(1, span, block), window, padding_left)
    query, key, value = (
        part.transpose(1, 2).flatten(0, 1) for part in (queries, keys, values)
    )  # (B blocks, H, block or span, D)
    visible = visible.flatten(0, 1)[:, None]
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
    return mixed.unflatten(0, (-1, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :time]


def _visible(tap: Tensor, real: Tensor, window: int, padding_left: int) -> Tensor:
    """Which keys a query may attend to: (..., Q, S), for taps (Q, S) and real keys (..., S)."""
    inside = (tap >= 0) & (tap < window)
    return inside & (real[..., None, :] | (tap == padding_left))
