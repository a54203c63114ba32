"""Attention over several kernels: dynamic convolution after Chen et al. (arXiv 1912.03458)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightconv_mt.mixers.base import MixerSlot, MixerState, check_positive, register_mixer
from lightconv_mt.mixers.conv_block import ConvBlock, ConvBlockConfig
from lightconv_mt.mixers.linear import Linear
from lightconv_mt.ops import dynamicconv, dynamicconv_step
from lightconv_mt.ops.means import running_mean, running_mean_step, sentence_mean


@register_mixer
@dataclass(kw_only=True)
class KernelAttentionConfig(ConvBlockConfig):
    """Convolution with a mixture of kernels; fields as `ConvBlockConfig`."""

    name: str = "kernel_attention"
    normalize: bool = True  # softmax over the taps of each kernel before they are mixed
    num_kernels: int = 4
    temperature: float = 30.0  # of the softmax over kernels; high ones keep all of them in use
    reduction: int = 4  # the squeezed channels are this many times fewer

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_kernels", "temperature", "reduction")

    def build(self, *, dim: int, slot: MixerSlot) -> "KernelAttentionMixer":
        """Build the mixer for one layer of one side."""
        return KernelAttentionMixer(self, dim=dim, slot=slot)


class KernelAttentionMixer(ConvBlock):
    """`y = conv(x, sum_m pi_m W_m)`, `pi = softmax(MLP(mean(x)) / temperature)`.

    The mean, Chen et al.'s squeeze, runs over the sentence (encoder) or over what of it was read so
    far (decoder), so there each position has a mixture of its own.

    Cost: with M kernels and S squeezed channels, M H K + C S + S + S M + M parameters; in the
    decoder C S + S M + M H K + C K multiply-adds a token beside the projections of `ConvBlock`, in
    the encoder the first three a sentence.

    Differs: the kernels W_m (H, K) are those of LightConv instead of full or depthwise ones, and
    have no bias; the temperature stays where it is instead of falling in the first epochs.
    """

    def __init__(self, config: KernelAttentionConfig, *, dim: int, slot: MixerSlot) -> None:
        """Build the kernels and the small network that weighs them."""
        super().__init__(config, dim=dim, slot=slot)
        self.normalize, self.temperature = config.normalize, config.temperature
        self.kernels = nn.Parameter(
            torch.empty(config.num_kernels, self.num_heads, self.kernel_size)
        )
        for number in range(config.num_kernels):
            nn.init.xavier_uniform_(self.kernels[number, :, None])
        squeezed = max(1, self.conv_dim // config.reduction)
        self.squeeze = Linear(self.conv_dim, squeezed)
        self.excite = Linear(squeezed, config.num_kernels)

    def convolve(self, x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        """Convolve (B, T, conv_dim)."""
        mean = running_mean(x, mask) if self.slot.causal else sentence_mean(x, mask)
        dropout, seed = self._dropped()
        return dynamicconv(
            x,
            self.mix_kernels(mean).expand(-1, x.shape[1], -1, -1),
            padding_left=self.padding_left,
            normalize=False,
            dropout=dropout,
            seed=seed,
            backend=self.slot.backend,
        )

    def initial_state(self, batch_size: int) -> MixerState:
        """As `ConvBlock`, and the sum of what was convolved so far (N, conv_dim)."""
        ring, position = super().initial_state(batch_size)
        dtype = torch.promote_types(ring.dtype, torch.float32)
        return (ring, position, ring.new_zeros(batch_size, self.conv_dim, dtype=dtype))

    def convolve_step(
        self, x: Tensor, source: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState]:
        """Convolve T new positions."""
        ring, position, total = state
        mean, total = running_mean_step(x, total, position)
        weight, backend = self.mix_kernels(mean), self.slot.backend
        y = dynamicconv_step(x, ring, position, weight, normalize=False, backend=backend)
        return y, (total,)

    def mix_kernels(self, mean: Tensor) -> Tensor:
        """Kernels (B, T, H, K) for squeezed inputs (B, T, conv_dim)."""
        scores = self.excite(self.squeeze(mean).relu()) / self.temperature
        kernels = self.kernels.softmax(dim=-1) if self.normalize else self.kernels
        return torch.einsum("btm,mhk->bthk", scores.softmax(dim=-1), kernels)
