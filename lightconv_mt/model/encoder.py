"""The encoder: a stack of mixer and feed-forward."""

from functools import partial

from torch import Tensor, nn

from lightconv_mt.mixers import TokenMixer
from lightconv_mt.model.layers import FeedForward, Sublayer
from lightconv_mt.ops import Backend


class EncoderLayer(nn.Module):
    """Mixer, then feed-forward, each in a residual sublayer."""

    def __init__(
        self,
        mixer: TokenMixer,
        feed_forward: FeedForward,
        *,
        dim: int,
        pre_norm: bool,
        dropout: float,
        backend: Backend,
    ) -> None:
        """Wrap the two parts; see `Sublayer` for pre_norm, dropout and backend."""
        super().__init__()
        self.mixer, self.feed_forward = mixer, feed_forward
        sublayer = partial(Sublayer, dim, pre_norm=pre_norm, dropout=dropout, backend=backend)
        self.mixer_sublayer = sublayer()
        self.feed_forward_sublayer = sublayer()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """X (B, S, C), mask (B, S) bool -> (B, S, C)."""
        y = self.mixer(self.mixer_sublayer.enter(x), mask)
        x = self.mixer_sublayer.leave(x, y)
        y = self.feed_forward(self.feed_forward_sublayer.enter(x))
        return self.feed_forward_sublayer.leave(x, y)


class Encoder(nn.Module):
    """Layers one after the other; a last norm only in the pre-norm form."""

    def __init__(self, layers: list[EncoderLayer], *, dim: int, pre_norm: bool) -> None:
        """Stack the given layers."""
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Embedded source x (B, S, C), mask (B, S) -> (B, S, C), anything finite at padding."""
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)
