"""The contract of everything that may stand in the self-attention slot, and the register."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from lightconv_mt.errors import ConfigError
from lightconv_mt.ops.dispatch import Backend

# Tensors with N rows first, so that beam search reorders them by one index_select each.
MixerState = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class MixerSlot:
    """Where a mixer stands: its layer, its side, and what the model hands down."""

    layer: int
    num_layers: int
    causal: bool
    num_heads: int
    ffn_dim: int
    backend: Backend = Backend.auto

    @property
    def side(self) -> str:
        """The side of the model, as configuration keys spell it."""
        return "decoder" if self.causal else "encoder"


@dataclass(kw_only=True)
class MixerConfig:
    """Base of every mixer's configuration; `name` picks the class, the rest is its own."""

    name: str

    def build(self, *, dim: int, slot: MixerSlot) -> "TokenMixer":
        """Build the mixer for one layer of one side."""
        raise NotImplementedError

    def check_layers(self, *, side: str, num_layers: int) -> None:
        """Raise ConfigError when per-layer lists do not fit the number of layers of a side."""


class TokenMixer(nn.Module, ABC):
    """Mixes information along the sequence: self-attention, or what replaces it."""

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mix whole sequences.

        Args:
            x: (B, T, C) float; anything, even NaN, at padding.
            mask: (B, T) bool, True = real token.

        Returns:
            (B, T, C); real positions do not depend on padding.
        """

    @abstractmethod
    def initial_state(self, batch_size: int) -> MixerState:
        """State before the first position, for `batch_size` rows; causal mixers only."""

    @abstractmethod
    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """Mix T >= 1 positions after those in `state`, without gradients.

        Args:
            x: (N, T, C) float.
            state: used once, since the next state may have overwritten its tensors.

        Returns:
            (N, T, C) and the next state.
        """


MIXERS: dict[str, type[MixerConfig]] = {}

Config = TypeVar("Config", bound=type[MixerConfig])


def register_mixer(config: Config) -> Config:
    """Class decorator: make a mixer selectable by the default of its `name` field."""
    MIXERS[str(config.__dataclass_fields__["name"].default)] = config
    return config


def per_layer(key: str, values: list[int], *, side: str, num_layers: int) -> list[int]:
    """One value per layer; a single value is repeated.

    Raises:
        ConfigError: when there are neither one nor `num_layers` values.
    """
    if len(values) == 1:
        return values * num_layers
    if len(values) != num_layers:
        raise ConfigError(
            f"model.mixer.{key} has {len(values)} widths but model.{side}_layers is {num_layers}; "
            f"give one width per layer, or a single one for all"
        )
    return values


def check_widths(config: MixerConfig, *keys: str) -> None:
    """Raise ConfigError unless each field holds at least one width, all of them 1 or more."""
    for key in keys:
        widths = getattr(config, key)
        if not widths or min(widths) < 1:
            raise ConfigError(
                f"model.mixer.{key} is {widths}; give at least one width, each 1 or more"
            )


def check_probabilities(config: MixerConfig, *keys: str) -> None:
    """Raise ConfigError unless each field lies in [0, 1)."""
    for key in keys:
        if not 0.0 <= getattr(config, key) < 1.0:
            raise ConfigError(
                f"model.mixer.{key} is {getattr(config, key)}; give a probability in [0, 1)"
            )


def check_positive(config: MixerConfig, *keys: str) -> None:
    """Raise ConfigError unless each field is None or more than zero."""
    for key in keys:
        value = getattr(config, key)
        if value is not None and not value > 0:
            raise ConfigError(f"model.mixer.{key} is {value}; give a positive number")


@dataclass(kw_only=True)
class KernelWidthsConfig(MixerConfig):
    """Base of what has a kernel width for each layer of a side; a single one is repeated."""

    encoder_kernel_sizes: list[int]
    decoder_kernel_sizes: list[int]

    def __post_init__(self) -> None:
        check_widths(self, "encoder_kernel_sizes", "decoder_kernel_sizes")

    def check_layers(self, *, side: str, num_layers: int) -> None:
        """Check the number of kernel widths of a side."""
        self.kernel_sizes(side=side, num_layers=num_layers)

    def kernel_sizes(self, *, side: str, num_layers: int) -> list[int]:
        """Kernel width of every layer of a side."""
        key = f"{side}_kernel_sizes"
        return per_layer(key, getattr(self, key), side=side, num_layers=num_layers)
