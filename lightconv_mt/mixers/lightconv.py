"""LightConv: one softmax-normalised kernel per head and layer (Wu et al., 2019, section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightconv_mt.mixers.base import MixerSlot, register_mixer
from lightconv_mt.mixers.conv import ConvMixer, ConvMixerConfig
from lightconv_mt.ops import lightconv, lightconv_step


@register_mixer
@dataclass(kw_only=True)
class LightConvConfig(ConvMixerConfig):
    """Lightweight convolution; fields as `ConvMixerConfig`."""

    name: str = "lightconv"

    def build(self, *, dim: int, slot: MixerSlot) -> "LightConvMixer":
        """Build the mixer for one layer of one side."""
        return LightConvMixer(self, dim=dim, slot=slot)


class LightConvMixer(ConvMixer):
    """Every position meets the same (H, K) kernels; channel c uses head c // (C / H)."""

    def __init__(self, config: LightConvConfig, *, dim: int, slot: MixerSlot) -> None:
        """Build with kernels drawn as fairseq draws its (H, 1, K) ones."""
        super().__init__(config, dim=dim, slot=slot)
        self.kernel = nn.Parameter(torch.empty(self.num_heads, self.kernel_size))
        nn.init.xavier_uniform_(self.kernel[:, None])

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve (B, T, conv_dim)."""
        dropout, seed = self._weight_dropout()
        return lightconv(
            x,
            self.kernel,
            padding_left=self.padding_left,
            normalize=self.config.normalize,
            dropout=dropout,
            seed=seed,
            backend=self.slot.backend,
        )

    def convolve_step(self, x: Tensor, ring: Tensor, position: Tensor) -> Tensor:
        """Convolve T new positions."""
        return lightconv_step(
            x,
            ring,
            position,
            self.kernel,
            normalize=self.config.normalize,
            backend=self.slot.backend,
        )
