"""DynamicConv: kernels predicted from the current token (Wu et al., 2019, section 4)."""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers.base import MixerSlot, MixerState, register_mixer
from lightconv_mt.mixers.conv_block import ConvBlock, ConvBlockConfig
from lightconv_mt.mixers.linear import Linear
from lightconv_mt.ops import dynamicconv, dynamicconv_step, mask_outside_taps
from lightconv_mt.ops.padding import zero_padding


class Query(Enum):
    """What kernels are predicted from: what is convolved there, or what the mixer was given."""

    convolved = "convolved"
    input = "input"


@register_mixer
@dataclass(kw_only=True)
class DynamicConvConfig(ConvBlockConfig):
    """Dynamic convolution; fields as `ConvBlockConfig`, and options of fairseq's module."""

    name: str = "dynamicconv"
    normalize: bool = True  # softmax over the taps of a kernel
    renormalize_edges: bool = False  # over those alone that lie in the sentence
    query: Query = Query.convolved

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.renormalize_edges and not self.normalize:
            raise ConfigError(
                "model.mixer.renormalize_edges needs the softmax; set model.mixer.normalize=true"
            )

    def build(self, *, dim: int, slot: MixerSlot) -> "DynamicConvMixer":
        """Build the mixer for one layer of one side."""
        return DynamicConvMixer(self, dim=dim, slot=slot)


class DynamicConvMixer(ConvBlock):
    """Each position's (H, K) kernels are a linear function of what is convolved there.

    Cost: C H K parameters and C H K + C K multiply-adds a token beside the projections of
    `ConvBlock`.
    """

    def __init__(self, config: DynamicConvConfig, *, dim: int, slot: MixerSlot) -> None:
        """Build with the kernel predictor at nn.Linear's own initialisation, as fairseq's."""
        super().__init__(config, dim=dim, slot=slot)
        self.config, self.reads_convolved = config, config.query is Query.convolved
        self.kernel_predictor = Linear(
            self.conv_dim if self.reads_convolved else dim,
            self.num_heads * self.kernel_size,
            bias=False,
        )

    def convolve(self, x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        """Convolve (B, T, conv_dim)."""
        weight = self.predict_kernels(x if self.reads_convolved else zero_padding(source, mask))
        if self.config.renormalize_edges:
            weight = mask_outside_taps(weight, self.padding_left, mask)
        dropout, seed = self._dropped()
        return dynamicconv(
            x,
            weight,
            padding_left=self.padding_left,
            normalize=self.config.normalize,
            dropout=dropout,
            seed=seed,
            backend=self.slot.backend,
        )

    def convolve_step(
        self, x: Tensor, source: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState]:
        """Convolve T new positions."""
        ring, position = state
        weight = self.predict_kernels(x if self.reads_convolved else source)
        if self.config.renormalize_edges:
            tap = torch.arange(self.kernel_size, device=x.device)
            reached = position[:, None] + torch.arange(x.shape[1], device=x.device)  # (N, T)
            outside = tap < self.kernel_size - 1 - reached[..., None]  # (N, T, K)
            weight = weight.masked_fill(outside[:, :, None], float("-inf"))
        normalize, backend = self.config.normalize, self.slot.backend
        y = dynamicconv_step(x, ring, position, weight, normalize=normalize, backend=backend)
        return y, ()

    def predict_kernels(self, query: Tensor) -> Tensor:
        """Raw kernels (B, T, H, K), before the softmax, of (B, T, conv_dim or C)."""
        return self.kernel_predictor(query).unflatten(-1, (self.num_heads, self.kernel_size))
