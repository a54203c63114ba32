"""Full convolution, which mixes positions and channels in one product (Gehring et al., 2017)."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightconv_mt.mixers.base import (
    KernelWidthsConfig,
    MixerSlot,
    MixerState,
    TokenMixer,
    register_mixer,
)
from lightconv_mt.ops.padding import zero_padding


@register_mixer
@dataclass(kw_only=True)
class ConvConfig(KernelWidthsConfig):
    """Full convolution; kernel widths are per layer, a single one is repeated."""

    name: str = "conv"
    encoder_kernel_sizes: list[int] = field(default_factory=lambda: [3])
    decoder_kernel_sizes: list[int] = field(default_factory=lambda: [3])

    def build(self, *, dim: int, slot: MixerSlot) -> "ConvMixer":
        """Build the mixer for one layer of one side."""
        return ConvMixer(self, dim=dim, slot=slot)


class ConvMixer(TokenMixer):
    """One convolution of C to C channels, with no projections around it.

    Cost: K C^2 + C parameters, K C^2 multiply-adds a token.
    """

    def __init__(self, config: ConvConfig, *, dim: int, slot: MixerSlot) -> None:
        """Build with Xavier weights and zero bias."""
        super().__init__()
        widths = config.kernel_sizes(side=slot.side, num_layers=slot.num_layers)
        self.kernel_size = widths[slot.layer]
        self.padding_left = self.kernel_size - 1 if slot.causal else self.kernel_size // 2
        self.convolution = nn.Conv1d(dim, dim, self.kernel_size)
        assert self.convolution.bias is not None
        nn.init.xavier_uniform_(self.convolution.weight)
        nn.init.zeros_(self.convolution.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mix (B, T, C); the convolution reads zeros at padding and outside the sequence."""
        x = zero_padding(x, mask)
        return self._convolve(
            F.pad(x, (0, 0, self.padding_left, self.kernel_size - 1 - self.padding_left))
        )

    def initial_state(self, batch_size: int) -> MixerState:
        """The K - 1 inputs before the first one, all zero: (N, K - 1, C)."""
        weight = self.convolution.weight
        return (weight.new_zeros(batch_size, self.kernel_size - 1, weight.shape[0]),)

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """Mix T new positions (N, T, C) after the last K - 1 inputs."""
        inputs = torch.cat([state[0].to(x.dtype), x], dim=1)
        return self._convolve(inputs), (inputs[:, x.shape[1] :],)

    def _convolve(self, x: Tensor) -> Tensor:
        """(B, T + K - 1, C) -> (B, T, C)."""
        return self.convolution(x.transpose(1, 2)).transpose(1, 2)
