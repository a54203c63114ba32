"""What both convolutions share: linear, GLU, convolution, linear (Wu et al., 2019, figure 2)."""

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers.base import MixerConfig, MixerSlot, MixerState, TokenMixer, per_layer
from lightconv_mt.ops.dropout import dropout


@dataclass(kw_only=True)
class ConvMixerConfig(MixerConfig):
    """Fields of both convolution mixers; kernel widths are per layer, a single one is repeated."""

    encoder_kernel_sizes: list[int] = field(default_factory=lambda: [3, 7, 15, 31, 31, 31, 31])
    decoder_kernel_sizes: list[int] = field(default_factory=lambda: [3, 7, 15, 31, 31, 31])
    num_heads: int | None = None  # None: the heads of the side's source attention
    encoder_conv_dim: int | None = None  # None: the side's dim
    decoder_conv_dim: int | None = None
    encoder_glu: bool = True
    decoder_glu: bool = True
    normalize: bool = True
    weight_dropout: float = 0.1
    input_dropout: float = 0.0

    def __post_init__(self) -> None:
        for key in ("encoder_kernel_sizes", "decoder_kernel_sizes"):
            widths = getattr(self, key)
            if not widths or min(widths) < 1:
                raise ConfigError(
                    f"model.mixer.{key} is {widths}; give at least one width, each 1 or more"
                )
        for key in ("weight_dropout", "input_dropout"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise ConfigError(
                    f"model.mixer.{key} is {getattr(self, key)}; give a probability in [0, 1)"
                )

    def check_layers(self, *, side: str, num_layers: int) -> None:
        """Check the number of kernel widths of a side."""
        self.kernel_sizes(side=side, num_layers=num_layers)

    def kernel_sizes(self, *, side: str, num_layers: int) -> list[int]:
        """Kernel width of every layer of a side."""
        key = f"{side}_kernel_sizes"
        return per_layer(key, getattr(self, key), side=side, num_layers=num_layers)


class ConvMixer(TokenMixer):
    """Input projection, gate, convolution, output projection; subclasses give the convolution."""

    def __init__(self, config: ConvMixerConfig, *, dim: int, slot: MixerSlot) -> None:
        """Build the projections.

        Args:
            config: the mixer's configuration.
            dim: C of the residual stream.
            slot: the layer and side it is built for.
        """
        super().__init__()
        self.config, self.slot = config, slot
        self.kernel_size = config.kernel_sizes(side=slot.side, num_layers=slot.num_layers)[
            slot.layer
        ]
        self.padding_left = self.kernel_size - 1 if slot.causal else self.kernel_size // 2
        self.num_heads = config.num_heads or slot.num_heads
        self.conv_dim: int = getattr(config, f"{slot.side}_conv_dim") or dim
        self.glu: bool = getattr(config, f"{slot.side}_glu")
        if self.conv_dim % self.num_heads:
            raise ConfigError(
                f"the {slot.side}'s convolution has {self.conv_dim} channels, "
                f"which {self.num_heads} heads cannot "
                f"share; set model.mixer.num_heads to a divisor of {self.conv_dim}"
            )
        self.input_projection = nn.Linear(dim, self.conv_dim * (2 if self.glu else 1))
        self.output_projection = nn.Linear(self.conv_dim, dim)
        for projection in (self.input_projection, self.output_projection):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    @abstractmethod
    def convolve(self, x: Tensor) -> Tensor:
        """Convolve x (B, T, conv_dim), zero at padding."""

    @abstractmethod
    def convolve_step(self, x: Tensor, ring: Tensor, position: Tensor) -> Tensor:
        """Convolve T new positions (N, T, conv_dim) after those in a ring; see `ops`."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mix (B, T, C); the convolution reads zeros at padding."""
        gated = self._gate(x).masked_fill(~mask[..., None], 0.0)
        return self.output_projection(self.convolve(gated))

    def initial_state(self, batch_size: int) -> MixerState:
        """A ring of K - 1 zero slots (N, K - 1, conv_dim), and how many positions were read (N,).

        Taps left of the sentence meet zeros and add nothing.
        """
        weight = self.output_projection.weight
        ring = weight.new_zeros(batch_size, self.kernel_size - 1, self.conv_dim)
        return (ring, torch.zeros(batch_size, dtype=torch.int64, device=weight.device))

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """Mix T new positions (N, T, C); the state is used once, its ring is overwritten."""
        ring, position = state
        gated = self._gate(x)
        ring = ring.to(gated.dtype)
        y = self.convolve_step(gated, ring, position)
        return self.output_projection(y), (ring, position + x.shape[1])

    def _gate(self, x: Tensor) -> Tensor:
        projected = self.input_projection(
            dropout(x, self.config.input_dropout, training=self.training)
        )
        return F.glu(projected, dim=-1) if self.glu else projected

    def _weight_dropout(self) -> tuple[float, int]:
        """Probability and seed for this call, from torch's generator: a seeded step repeats."""
        if not self.training or self.config.weight_dropout == 0.0:
            return 0.0, 0
        return self.config.weight_dropout, int(torch.randint(2**62, ()))
