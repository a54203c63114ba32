"""Average attention (Zhang et al., 2018): the mean of what was read, a feed-forward, a gate."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightconv_mt.mixers.attention import attention_projection
from lightconv_mt.mixers.base import (
    MixerConfig,
    MixerSlot,
    MixerState,
    TokenMixer,
    check_positive,
    check_probabilities,
    register_mixer,
)
from lightconv_mt.ops.means import running_mean, running_mean_step, sentence_mean
from lightconv_mt.ops.padding import zero_padding
from lightconv_mt.ops.residual import dropout


@register_mixer
@dataclass(kw_only=True)
class AverageAttentionConfig(MixerConfig):
    """Average attention network."""

    name: str = "average_attention"
    ffn_dim: int | None = None  # of its feed-forward; None: that of the side's own
    relu_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self, "ffn_dim")
        check_probabilities(self, "relu_dropout")

    def build(self, *, dim: int, slot: MixerSlot) -> "AverageAttentionMixer":
        """Build the mixer for one layer of one side."""
        return AverageAttentionMixer(self, dim=dim, slot=slot)


class AverageAttentionMixer(TokenMixer):
    """`g = FFN(mean(x))`, `i, f = sigmoid(W [x; g])`, `y = i x + f g` (Zhang et al., section 3).

    The mean runs over the positions read so far (decoder) or over the whole sentence (encoder), for
    which Zhang et al. have no form.

    Cost: with a feed-forward of F, 2 C F + 4 C^2 + F + 3 C parameters; in the decoder
    2 C F + 4 C^2 + 2 C multiply-adds a token, in the encoder the feed-forward's 2 C F a sentence.
    """

    def __init__(self, config: AverageAttentionConfig, *, dim: int, slot: MixerSlot) -> None:
        """Build feed-forward and gates."""
        super().__init__()
        self.slot, self.relu_dropout = slot, config.relu_dropout
        ffn_dim = config.ffn_dim or slot.ffn_dim
        self.inner = attention_projection(dim, ffn_dim)
        self.outer = attention_projection(ffn_dim, dim)
        self.gates = attention_projection(2 * dim, 2 * dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mix (B, T, C)."""
        x = zero_padding(x, mask)
        mean = running_mean(x, mask) if self.slot.causal else sentence_mean(x, mask)
        return self._join(x, mean)

    def initial_state(self, batch_size: int) -> MixerState:
        """The sum of the inputs so far (N, C), and how many positions were read (N,)."""
        weight = self.outer.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return (
            weight.new_zeros(batch_size, weight.shape[0], dtype=dtype),
            torch.zeros(batch_size, dtype=torch.int64, device=weight.device),
        )

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """Mix T new positions (N, T, C)."""
        total, position = state
        mean, total = running_mean_step(x, total, position)
        return self._join(x, mean), (total, position + x.shape[1])

    def _join(self, x: Tensor, mean: Tensor) -> Tensor:
        """X (B, T, C), mean (B, T or 1, C) -> (B, T, C)."""
        inner = dropout(
            self.inner(mean).relu_(),
            self.relu_dropout,
            training=self.training,
            backend=self.slot.backend,
        )
        context = self.outer(inner).expand_as(x)
        keep, take = self.gates(torch.cat([x, context], dim=-1)).sigmoid().chunk(2, dim=-1)
        return keep * x + take * context
