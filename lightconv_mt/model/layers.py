"""Feed-forward, source attention and the residual wrapper around every sublayer."""

from torch import Tensor, nn

from lightconv_mt.mixers.attention import attention_projection, merge_heads, split_heads
from lightconv_mt.mixers.linear import Linear, ReluLinear
from lightconv_mt.ops import Backend
from lightconv_mt.ops.attention import attention
from lightconv_mt.ops.residual import draw_seed, dropout, residual, residual_norm


class Sublayer(nn.Module):
    """Residual connection and layer norm: post-norm `LN(x + f(x))`, pre-norm `x + f(LN(x))`."""

    def __init__(self, dim: int, *, pre_norm: bool, dropout: float, backend: Backend) -> None:
        """Build the norm over C = dim; dropout acts on f's output."""
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.pre_norm, self.dropout, self.backend = pre_norm, dropout, backend

    def enter(self, x: Tensor) -> Tensor:
        """What the sublayer's function reads; (B, T, C)."""
        return self.norm(x) if self.pre_norm else x

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        """Join the function's output y to the residual stream x, both (B, T, C)."""
        probability = self.dropout if self.training else 0.0
        seed, backend, norm = draw_seed() if probability else 0, self.backend, self.norm
        if self.pre_norm:
            return residual(x, y, dropout=probability, seed=seed, backend=backend)
        return residual_norm(
            *(x, y, norm.weight, norm.bias),
            eps=norm.eps,
            dropout=probability,
            seed=seed,
            backend=backend,
        )


class FeedForward(nn.Module):
    """linear -> ReLU -> linear."""

    def __init__(self, dim: int, ffn_dim: int, *, relu_dropout: float, backend: Backend) -> None:
        """Build with Xavier weights and zero biases."""
        super().__init__()
        self.relu_dropout, self.backend = relu_dropout, backend
        self.inner, self.outer = ReluLinear(dim, ffn_dim, backend=backend), Linear(ffn_dim, dim)
        for linear in (self.inner, self.outer):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        inner = self.inner(x)
        dropped = dropout(inner, self.relu_dropout, training=self.training, backend=self.backend)
        out: Tensor = self.outer(dropped)
        return out


class SourceAttention(nn.Module):
    """Attention to the encoded source, whose keys and values are projected once a sentence."""

    def __init__(
        self,
        dim: int,
        source_dim: int,
        *,
        num_heads: int,
        attention_dropout: float,
        backend: Backend,
    ) -> None:
        """Build the projections.

        Args:
            dim: C of the decoder.
            source_dim: C of the encoder.
            num_heads: H, a divisor of dim.
            attention_dropout: on the attention probabilities.
            backend: implementation of the attention.
        """
        super().__init__()
        self.num_heads, self.attention_dropout = num_heads, attention_dropout
        self.backend = backend
        self.query = attention_projection(dim, dim)
        self.key, self.value = (
            attention_projection(source_dim, dim),
            attention_projection(source_dim, dim),
        )
        self.output_projection = attention_projection(dim, dim)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, C / H) of the encoded source (B, S, source_dim)."""
        return split_heads(self.key(memory), self.num_heads), split_heads(
            self.value(memory), self.num_heads
        )

    def forward(self, x: Tensor, key: Tensor, value: Tensor, src_mask: Tensor) -> Tensor:
        """Attend from N = B x beam rows to B sources, without copying a source for every beam.

        Args:
            x: (N, T, C); row n belongs to source n // beam.
            key: (B, H, S, C / H).
            value: (B, H, S, C / H).
            src_mask: (B, S) bool, True = real token.

        Returns:
            (N, T, C).
        """
        dropout = self.attention_dropout if self.training else 0.0
        mixed = attention(
            self._queries(x, key),
            key,
            value,
            src_mask,
            dropout=dropout,
            seed=draw_seed() if dropout else 0,
            backend=self.backend,
        )
        return self.output_projection(merge_heads(mixed).view(x.shape))

    def weights(self, x: Tensor, key: Tensor, src_mask: Tensor) -> Tensor:
        """Attention probabilities (B, H, beam x T, S), float32; arguments as `forward`."""
        scores = self._queries(x, key) @ key.transpose(-1, -2) * key.shape[-1] ** -0.5
        return (
            scores.float().masked_fill(~src_mask[:, None, None, :], float("-inf")).softmax(dim=-1)
        )

    def _queries(self, x: Tensor, key: Tensor) -> Tensor:
        return split_heads(self.query(x).view(key.shape[0], -1, x.shape[-1]), self.num_heads)
