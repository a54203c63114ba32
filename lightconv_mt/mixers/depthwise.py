"""Depthwise convolution: fixed kernels as they are, one a channel (Wu et al., 2019, section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightconv_mt.mixers.base import MixerSlot, MixerState, register_mixer
from lightconv_mt.mixers.conv_block import ConvBlock, ConvBlockConfig
from lightconv_mt.ops import lightconv, lightconv_step


@register_mixer
@dataclass(kw_only=True)
class DepthwiseConfig(ConvBlockConfig):
    """LightConv without softmax; `num_heads` of None is a kernel of its own for each channel."""

    name: str = "depthwise"

    def build(self, *, dim: int, slot: MixerSlot) -> "DepthwiseMixer":
        """Build the mixer for one layer of one side."""
        return DepthwiseMixer(self, dim=dim, slot=slot)

    def heads(self, *, conv_dim: int, slot: MixerSlot) -> int:
        """Number of kernels that the channels share."""
        return self.num_heads or conv_dim


class DepthwiseMixer(ConvBlock):
    """Every position meets the same (H, K) kernels; channel c uses head c // (C / H).

    Cost: H K parameters and C K multiply-adds a token beside the projections of `ConvBlock`.
    """

    normalize = False

    def __init__(self, config: ConvBlockConfig, *, dim: int, slot: MixerSlot) -> None:
        """Build with kernels drawn as fairseq draws its (H, 1, K) ones."""
        super().__init__(config, dim=dim, slot=slot)
        self.kernel = nn.Parameter(torch.empty(self.num_heads, self.kernel_size))
        nn.init.xavier_uniform_(self.kernel[:, None])

    def convolve(self, x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        """Convolve (B, T, conv_dim)."""
        dropout, seed = self._dropped()
        return lightconv(
            x,
            self.kernel,
            padding_left=self.padding_left,
            normalize=self.normalize,
            dropout=dropout,
            seed=seed,
            backend=self.slot.backend,
        )

    def convolve_step(
        self, x: Tensor, source: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState]:
        """Convolve T new positions."""
        ring, position = state
        y = lightconv_step(
            x, ring, position, self.kernel, normalize=self.normalize, backend=self.slot.backend
        )
        return y, ()
