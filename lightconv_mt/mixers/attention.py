"""Multi-head self-attention, the baseline (Vaswani et al., 2017)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers.base import (
    MixerConfig,
    MixerSlot,
    MixerState,
    TokenMixer,
    check_positive,
    check_probabilities,
    check_widths,
    per_layer,
    register_mixer,
)
from lightconv_mt.mixers.linear import Linear
from lightconv_mt.ops.attention import attention
from lightconv_mt.ops.padding import zero_padding
from lightconv_mt.ops.residual import draw_seed
from lightconv_mt.ops.window_attention import window_attention


@register_mixer
@dataclass(kw_only=True)
class AttentionConfig(MixerConfig):
    """Self-attention to everything, or to a window per layer as wide as a convolution's kernel."""

    name: str = "attention"
    encoder_windows: list[int] | None = None  # one for each layer, or one for all; None: everything
    decoder_windows: list[int] | None = None
    num_heads: int | None = None  # None: the heads of the side's source attention
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        for key in ("encoder_windows", "decoder_windows"):
            if getattr(self, key) is not None:
                check_widths(self, key)
        check_positive(self, "num_heads")
        check_probabilities(self, "attention_dropout")

    def check_layers(self, *, side: str, num_layers: int) -> None:
        """Check the number of windows of a side."""
        self.windows(side=side, num_layers=num_layers)

    def windows(self, *, side: str, num_layers: int) -> list[int] | None:
        """Positions that each layer of a side sees, or None for all of them."""
        key = f"{side}_windows"
        widths = getattr(self, key)
        return widths and per_layer(key, widths, side=side, num_layers=num_layers)

    def build(self, *, dim: int, slot: MixerSlot) -> "AttentionMixer":
        """Build the mixer for one layer of one side."""
        return AttentionMixer(self, dim=dim, slot=slot)


class AttentionMixer(TokenMixer):
    """Scaled dot-product attention to all positions (encoder) or those so far (decoder).

    With a window of k only k of them: those around a position, or the last ones with itself.

    Cost: 4 C^2 + 4 C parameters, 4 C^2 + 2 T C + 2 C multiply-adds a token; where T is long a
    window puts 2 (max(k, 32) + k - 1) C in place of 2 T C.
    """

    def __init__(self, config: AttentionConfig, *, dim: int, slot: MixerSlot) -> None:
        """Build the four projections."""
        super().__init__()
        self.slot, self.attention_dropout = slot, config.attention_dropout
        windows = config.windows(side=slot.side, num_layers=slot.num_layers)
        self.window = windows[slot.layer] if windows else None
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
        x = zero_padding(x, mask)
        query, key, value = (
            split_heads(part(x), self.num_heads) for part in (self.query, self.key, self.value)
        )
        dropout = self.attention_dropout if self.training else 0.0
        if self.window is not None:
            left = self.window - 1 if self.slot.causal else self.window // 2
            mixed = window_attention(
                query, key, value, mask, window=self.window, padding_left=left, dropout=dropout
            )
        else:
            # Targets are padded on the right, so the causal mask alone keeps real positions clear
            # of padding.
            mixed = attention(
                query,
                key,
                value,
                None if self.slot.causal else mask,
                causal=self.slot.causal,
                dropout=dropout,
                seed=draw_seed() if dropout else 0,
                backend=self.slot.backend,
            )
        return self.output_projection(merge_heads(mixed))

    def initial_state(self, batch_size: int) -> MixerState:
        """No keys and no values yet: two (N, H, 0, C / H)."""
        weight = self.key.weight
        empty = weight.new_zeros(batch_size, self.num_heads, 0, weight.shape[0] // self.num_heads)
        return (empty, empty)

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """Mix T new positions (N, T, C) after the t remembered ones, at most window - 1."""
        query, new_key, new_value = (
            split_heads(part(x), self.num_heads) for part in (self.query, self.key, self.value)
        )
        key = torch.cat([state[0].to(new_key.dtype), new_key], dim=2)
        value = torch.cat([state[1].to(new_value.dtype), new_value], dim=2)
        new, total = query.shape[2], key.shape[2]
        visible = torch.ones(new, total, dtype=torch.bool, device=x.device).tril(total - new)
        if self.window is not None:
            visible = visible.triu(total - new - self.window + 1)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible if new > 1 else None
        )
        forgotten = 0 if self.window is None else max(0, total - self.window + 1)
        state = (key[:, :, forgotten:], value[:, :, forgotten:])
        return self.output_projection(merge_heads(mixed)), state


def attention_projection(inputs: int, outputs: int) -> Linear:
    """Linear layer of an attention, Xavier weights and zero bias."""
    linear = Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, C) -> (B, H, T, C / H)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, T, C / H) -> (B, T, C)."""
    return x.transpose(1, 2).flatten(2)
