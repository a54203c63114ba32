"""What convolutions share: linear, GLU, convolution, linear (Wu et al., 2019, figure 2)."""

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers.base import (
    KernelWidthsConfig,
    MixerSlot,
    MixerState,
    TokenMixer,
    check_positive,
    check_probabilities,
)
from lightconv_mt.mixers.linear import Linear
from lightconv_mt.ops.padding import zero_padding
from lightconv_mt.ops.residual import draw_seed, dropout


@dataclass(kw_only=True)
class ConvBlockConfig(KernelWidthsConfig):
    """Fields of every such convolution; kernel widths are per layer, a single one is repeated."""

    encoder_kernel_sizes: list[int] = field(default_factory=lambda: [3, 7, 15, 31, 31, 31, 31])
    decoder_kernel_sizes: list[int] = field(default_factory=lambda: [3, 7, 15, 31, 31, 31])
    num_heads: int | None = None  # None: the heads of the side's source attention
    encoder_conv_dim: int | None = None  # None: the side's dim
    decoder_conv_dim: int | None = None
    encoder_glu: bool = True
    decoder_glu: bool = True
    weight_dropout: float = 0.1
    input_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_heads", "encoder_conv_dim", "decoder_conv_dim")
        check_probabilities(self, "weight_dropout", "input_dropout")

    def heads(self, *, conv_dim: int, slot: MixerSlot) -> int:
        """Number of kernels that the channels share."""
        return self.num_heads or slot.num_heads


class ConvBlock(TokenMixer):
    """Input projection, gate, convolution, output projection; subclasses give the convolution.

    Cost: 2 C^2 + 2 C parameters and 2 C^2 multiply-adds a token, with a GLU 3 C^2 + 3 C and 3 C^2.
    """

    def __init__(self, config: ConvBlockConfig, *, dim: int, slot: MixerSlot) -> None:
        """Build the projections.

        Args:
            config: the mixer's configuration.
            dim: C of the residual stream.
            slot: the layer and side it is built for.
        """
        super().__init__()
        self.slot = slot
        self.input_dropout, self.weight_dropout = config.input_dropout, config.weight_dropout
        self.kernel_size = config.kernel_sizes(side=slot.side, num_layers=slot.num_layers)[
            slot.layer
        ]
        self.padding_left = self.kernel_size - 1 if slot.causal else self.kernel_size // 2
        self.conv_dim: int = getattr(config, f"{slot.side}_conv_dim") or dim
        self.num_heads = config.heads(conv_dim=self.conv_dim, slot=slot)
        self.glu: bool = getattr(config, f"{slot.side}_glu")
        if self.conv_dim % self.num_heads:
            raise ConfigError(
                f"the {slot.side}'s convolution has {self.conv_dim} channels, "
                f"which {self.num_heads} heads cannot "
                f"share; set model.mixer.num_heads to a divisor of {self.conv_dim}"
            )
        self.input_projection = Linear(dim, self.conv_dim * (2 if self.glu else 1))
        self.output_projection = Linear(self.conv_dim, dim)
        for projection in (self.input_projection, self.output_projection):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    @abstractmethod
    def convolve(self, x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        """Convolve whole sequences.

        Args:
            x: (B, T, conv_dim), zero at padding.
            source: (B, T, C), what the mixer was given.
            mask: (B, T) bool.

        Returns:
            (B, T, conv_dim).
        """

    @abstractmethod
    def convolve_step(
        self, x: Tensor, source: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState]:
        """Convolve T new positions, without gradients.

        Args:
            x: (N, T, conv_dim).
            source: (N, T, C), what the mixer was given.
            state: as of `initial_state`; its ring is overwritten.

        Returns:
            (N, T, conv_dim), and what the next state holds behind ring and position.
        """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mix (B, T, C); the convolution reads zeros at padding."""
        gated = zero_padding(self._gate(x), mask)
        return self.output_projection(self.convolve(gated, x, mask))

    def initial_state(self, batch_size: int) -> MixerState:
        """A ring of K - 1 zero slots (N, K - 1, conv_dim), and how many positions were read (N,).

        Taps left of the sentence meet zeros and add nothing.
        """
        weight = self.output_projection.weight
        ring = weight.new_zeros(batch_size, self.kernel_size - 1, self.conv_dim)
        return (ring, torch.zeros(batch_size, dtype=torch.int64, device=weight.device))

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """Mix T new positions (N, T, C); the state is used once, its ring is overwritten."""
        gated = self._gate(x)
        ring, position, *more = state
        ring = ring.to(gated.dtype)
        y, rest = self.convolve_step(gated, x, (ring, position, *more))
        return self.output_projection(y), (ring, position + x.shape[1], *rest)

    def _gate(self, x: Tensor) -> Tensor:
        dropped = dropout(x, self.input_dropout, training=self.training, backend=self.slot.backend)
        projected = self.input_projection(dropped)
        return F.glu(projected, dim=-1) if self.glu else projected

    def _dropped(self) -> tuple[float, int]:
        """Weight dropout and its seed, from torch's generator: a seeded step repeats."""
        if not self.training or self.weight_dropout == 0.0:
            return 0.0, 0
        return self.weight_dropout, draw_seed()
