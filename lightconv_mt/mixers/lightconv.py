"""LightConv: one softmax-normalised kernel per head and layer (Wu et al., 2019, section 3)."""

from dataclasses import dataclass

from lightconv_mt.mixers.base import MixerSlot, register_mixer
from lightconv_mt.mixers.conv_block import ConvBlockConfig
from lightconv_mt.mixers.depthwise import DepthwiseMixer


@register_mixer
@dataclass(kw_only=True)
class LightConvConfig(ConvBlockConfig):
    """Lightweight convolution; fields as `ConvBlockConfig`."""

    name: str = "lightconv"
    normalize: bool = True  # softmax over the taps of a kernel

    def build(self, *, dim: int, slot: MixerSlot) -> "LightConvMixer":
        """Build the mixer for one layer of one side."""
        return LightConvMixer(self, dim=dim, slot=slot)


class LightConvMixer(DepthwiseMixer):
    """Depthwise convolution whose channels share H kernels, each with a softmax over its taps."""

    def __init__(self, config: LightConvConfig, *, dim: int, slot: MixerSlot) -> None:
        """Build as `DepthwiseMixer`."""
        super().__init__(config, dim=dim, slot=slot)
        self.normalize = config.normalize
