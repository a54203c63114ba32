"""Multi-head self-attention, the baseline (Vaswani et al., 2017)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers.base import MixerConfig, MixerSlot, MixerState, TokenMixer, register_mixer


@register_mixer
@dataclass(kw_only=True)
class AttentionConfig(MixerConfig):
    """Full self-attention."""

    name: str = "attention"
    num_heads: int | None = None  # None: the heads of the side's source attention
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.attention_dropout < 1.0:
            raise ConfigError(
                f"model.mixer.attention_dropout is {self.attention_dropout}; "
                f"give a probability in [0, 1)"
            )

    def build(self, *, dim: int, slot: MixerSlot) -> "AttentionMixer":
        """Build the mixer for one layer of one side."""
        return AttentionMixer(self, dim=dim, slot=slot)


class AttentionMixer(TokenMixer):
    """Scaled dot-product attention to all positions (encoder) or those so far (decoder)."""

    def __init__(self, config: AttentionConfig, *, dim: int, slot: MixerSlot) -> None:
        """Build the four projections."""
        super().__init__()
        self.config, self.slot = config, slot
        self.num_heads = config.num_heads or slot.num_heads
        if dim % self.num_heads:
            raise ConfigError(
                f"the {slot.side}'s attention has {dim} channels, "
                f"which {self.num_heads} heads cannot share; "
                f"set num_heads to a divisor of {dim}"
            )
        self.query, self.key, self.value = (attention_projection(dim, dim) for _ in range(3))
        self.output_projection = attention_projection(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mix (B, T, C); padded keys are never attended to."""
        x = x.masked_fill(~mask[..., None], 0.0)
        query, key, value = (
            split_heads(part(x), self.num_heads) for part in (self.query, self.key, self.value)
        )
        # Targets are padded on the right, so the causal mask alone keeps real positions clear of
        # padding.
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if self.slot.causal else mask[:, None, None, :],
            is_causal=self.slot.causal,
            dropout_p=self.config.attention_dropout if self.training else 0.0,
        )
        return self.output_projection(merge_heads(mixed))

    def initial_state(self, batch_size: int) -> MixerState:
        """No keys and no values yet: two (N, H, 0, C / H)."""
        weight = self.key.weight
        empty = weight.new_zeros(batch_size, self.num_heads, 0, weight.shape[0] // self.num_heads)
        return (empty, empty)

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """Mix T new positions (N, T, C) after the t remembered ones."""
        query, new_key, new_value = (
            split_heads(part(x), self.num_heads) for part in (self.query, self.key, self.value)
        )
        key = torch.cat([state[0].to(new_key.dtype), new_key], dim=2)
        value = torch.cat([state[1].to(new_value.dtype), new_value], dim=2)
        new, total = query.shape[2], key.shape[2]
        visible = torch.ones(new, total, dtype=torch.bool, device=x.device).tril(total - new)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible if new > 1 else None
        )
        return self.output_projection(merge_heads(mixed)), (key, value)


def attention_projection(inputs: int, outputs: int) -> nn.Linear:
    """Linear layer of an attention, Xavier weights and zero bias."""
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, C) -> (B, H, T, C / H)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, T, C / H) -> (B, T, C)."""
    return x.transpose(1, 2).flatten(2)
