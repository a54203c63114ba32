"""Token embedding and sinusoidal positions."""

from math import log, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightconv_mt.ops import Backend
from lightconv_mt.ops.residual import dropout

# Positions of real tokens start here and padding has the row before it, as in published fairseq
# models.
FIRST_POSITION = 2


class TokenEmbedding(nn.Module):
    """Embedding scaled by sqrt(C) plus sinusoidal positions, then dropout."""

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        pad_id: int,
        dropout: float,
        backend: Backend = Backend.auto,
    ) -> None:
        """Draw the (V, C) table from N(0, 1 / C); the padding row is zero.

        Args:
            vocab_size: V.
            dim: C.
            pad_id: id of padding, whose row gets no gradient from look-ups.
            dropout: probability on the sum.
            backend: implementation of dropout.
        """
        super().__init__()
        self.pad_id, self.dropout, self.backend = pad_id, dropout, backend
        self.weight = nn.Parameter(torch.empty(vocab_size, dim).normal_(std=dim**-0.5))
        with torch.no_grad():
            self.weight[pad_id].zero_()

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Embed tokens (B, T) int64 at positions (B or 1, T) int64; returns (B, T, C)."""
        dim = self.weight.shape[1]
        embedded = F.embedding(tokens, self.weight, padding_idx=self.pad_id) * sqrt(dim)
        placed = embedded + sinusoidal_positions(positions, dim).to(embedded.dtype)
        return dropout(placed, self.dropout, training=self.training, backend=self.backend)


def token_positions(mask: Tensor) -> Tensor:
    """Position of every token, counted over real tokens, so left and right padding agree.

    Args:
        mask: (B, T) bool, True = real token.

    Returns:
        (B, T) int64: `FIRST_POSITION` and up at real tokens, `FIRST_POSITION - 1` at padding.
    """
    return mask.cumsum(dim=1) * mask + (FIRST_POSITION - 1)


def sinusoidal_positions(positions: Tensor, dim: int) -> Tensor:
    """Vectors [sin(p w_0), ..., cos(p w_0), ...] with w_i = 10000 ** (-i / (C / 2 - 1)).

    The vector of padding (`FIRST_POSITION - 1`) is zero; an odd C ends in a zero.

    Args:
        positions: (B, T) int64.
        dim: C.

    Returns:
        (B, T, C) float32.
    """
    half = dim // 2
    rate = torch.exp(torch.arange(half, dtype=torch.float64) * -(log(10000.0) / max(half - 1, 1)))
    angle = positions[..., None] * rate.to(positions.device, torch.float32)
    vectors = F.pad(torch.cat([angle.sin(), angle.cos()], dim=-1), (0, dim % 2))
    return vectors.masked_fill_(positions[..., None] < FIRST_POSITION, 0.0)
