"""DynamicConv: kernels predicted from the current token (Wu et al., 2019, section 4)."""

from dataclasses import dataclass

from torch import Tensor, nn

from lightconv_mt.mixers.base import MixerSlot, register_mixer
from lightconv_mt.mixers.conv import ConvMixer, ConvMixerConfig
from lightconv_mt.ops import dynamicconv, dynamicconv_step


@register_mixer
@dataclass(kw_only=True)
class DynamicConvConfig(ConvMixerConfig):
    """Dynamic convolution; fields as `ConvMixerConfig`."""

    name: str = "dynamicconv"

    def build(self, *, dim: int, slot: MixerSlot) -> "DynamicConvMixer":
        """Build the mixer for one layer of one side."""
        return DynamicConvMixer(self, dim=dim, slot=slot)


class DynamicConvMixer(ConvMixer):
    """Each position's (H, K) kernels are a linear function of what is convolved there."""

    def __init__(self, config: DynamicConvConfig, *, dim: int, slot: MixerSlot) -> None:
        """Build with the kernel predictor at nn.Linear's own initialisation, as fairseq's."""
        super().__init__(config, dim=dim, slot=slot)
        self.kernel_predictor = nn.Linear(
            self.conv_dim, self.num_heads * self.kernel_size, bias=False
        )

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve (B, T, conv_dim)."""
        dropout, seed = self._weight_dropout()
        return dynamicconv(
            x,
            self.predict_kernels(x),
            padding_left=self.padding_left,
            normalize=self.config.normalize,
            dropout=dropout,
            seed=seed,
            backend=self.slot.backend,
        )

    def convolve_step(self, x: Tensor, ring: Tensor, position: Tensor) -> Tensor:
        """Convolve T new positions."""
        return dynamicconv_step(
            x,
            ring,
            position,
            self.predict_kernels(x),
            normalize=self.config.normalize,
            backend=self.slot.backend,
        )

    def predict_kernels(self, x: Tensor) -> Tensor:
        """Raw kernels for x (B, T, conv_dim): (B, T, H, K), before the softmax."""
        return self.kernel_predictor(x).unflatten(-1, (self.num_heads, self.kernel_size))
