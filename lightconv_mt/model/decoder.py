"""The decoder: causal mixer, source attention, feed-forward; whole targets or step by step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from lightconv_mt.mixers import MixerState, TokenMixer
from lightconv_mt.model.layers import FeedForward, SourceAttention, Sublayer
from lightconv_mt.ops import Backend

# Keys and values of one layer's source attention, each (B, H, S, C / H).
SourceKeys = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class DecoderState:
    """What decoding remembers: N = B x beam target rows, row n belonging to source n // beam.

    Attributes:
        position: target tokens read so far.
        mixers: one state a layer; every tensor has N rows.
        sources: one pair of keys and values a layer; every tensor has B rows.
        src_mask: (B, S) bool.
    """

    position: int
    mixers: list[MixerState]
    sources: list[SourceKeys]
    src_mask: Tensor

    def reorder(self, rows: Tensor) -> "DecoderState":
        """Take the target rows `rows` (N',) int64, in that order; sources stay."""
        mixers = [tuple(tensor.index_select(0, rows) for tensor in state) for state in self.mixers]
        return replace(self, mixers=mixers)

    def keep(self, sentences: Tensor) -> "DecoderState":
        """Take the sources `sentences` (B',) int64; target rows are taken by `reorder`."""
        sources = [
            (key.index_select(0, sentences), value.index_select(0, sentences))
            for key, value in self.sources
        ]
        return replace(self, sources=sources, src_mask=self.src_mask.index_select(0, sentences))


class DecoderLayer(nn.Module):
    """Causal mixer, source attention and feed-forward, each in a residual sublayer."""

    def __init__(
        self,
        mixer: TokenMixer,
        source_attention: SourceAttention,
        feed_forward: FeedForward,
        *,
        dim: int,
        pre_norm: bool,
        dropout: float,
        backend: Backend,
    ) -> None:
        """Wrap the three parts; see `Sublayer` for pre_norm, dropout and backend."""
        super().__init__()
        self.mixer, self.source_attention, self.feed_forward = mixer, source_attention, feed_forward
        sublayer = partial(Sublayer, dim, pre_norm=pre_norm, dropout=dropout, backend=backend)
        self.mixer_sublayer = sublayer()
        self.source_sublayer = sublayer()
        self.feed_forward_sublayer = sublayer()

    def forward(self, x: Tensor, mask: Tensor, memory: Tensor, src_mask: Tensor) -> Tensor:
        """X (B, T, C), mask (B, T), memory (B, S, C), src_mask (B, S) -> (B, T, C)."""
        y = self.mixer(self.mixer_sublayer.enter(x), mask)
        source = self.source_attention.project(memory)
        return self._read_source(self.mixer_sublayer.leave(x, y), source, src_mask)

    def step(
        self, x: Tensor, state: MixerState, source: SourceKeys, src_mask: Tensor
    ) -> tuple[Tensor, MixerState]:
        """X (N, T, C) new positions -> (N, T, C) and the mixer's next state."""
        y, state = self.mixer.step(self.mixer_sublayer.enter(x), state)
        return self._read_source(self.mixer_sublayer.leave(x, y), source, src_mask), state

    def source_weights(self, x: Tensor, mask: Tensor, memory: Tensor, src_mask: Tensor) -> Tensor:
        """Source attention probabilities (B, H, T, S); arguments as `forward`."""
        y = self.mixer(self.mixer_sublayer.enter(x), mask)
        key, _ = self.source_attention.project(memory)
        x = self.source_sublayer.enter(self.mixer_sublayer.leave(x, y))
        return self.source_attention.weights(x, key, src_mask)

    def _read_source(self, x: Tensor, source: SourceKeys, src_mask: Tensor) -> Tensor:
        y = self.source_attention(self.source_sublayer.enter(x), *source, src_mask)
        x = self.source_sublayer.leave(x, y)
        y = self.feed_forward(self.feed_forward_sublayer.enter(x))
        return self.feed_forward_sublayer.leave(x, y)


class Decoder(nn.Module):
    """Layers one after the other; a last norm only in the pre-norm form."""

    def __init__(self, layers: list[DecoderLayer], *, dim: int, pre_norm: bool) -> None:
        """Stack the given layers."""
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor, memory: Tensor, src_mask: Tensor) -> Tensor:
        """Run whole targets.

        Args:
            x: (B, T, C) embedded target.
            mask: (B, T) bool, padding on the right.
            memory: (B, S, C) the encoded source.
            src_mask: (B, S) bool.

        Returns:
            (B, T, C).
        """
        for layer in self._layers():
            x = layer(x, mask, memory, src_mask)
        return self.norm(x)

    def source_weights(
        self, x: Tensor, mask: Tensor, memory: Tensor, src_mask: Tensor, *, layer: int
    ) -> Tensor:
        """Source attention probabilities (B, H, T, S) of a layer, from 0; others as `forward`."""
        layers = list(self._layers())
        for below in layers[:layer]:
            x = below(x, mask, memory, src_mask)
        return layers[layer].source_weights(x, mask, memory, src_mask)

    def start(self, memory: Tensor, src_mask: Tensor, beam_size: int) -> DecoderState:
        """State before the first token, for beam_size rows a sentence; arguments as `forward`."""
        rows = memory.shape[0] * beam_size
        return DecoderState(
            position=0,
            mixers=[layer.mixer.initial_state(rows) for layer in self._layers()],
            sources=[layer.source_attention.project(memory) for layer in self._layers()],
            src_mask=src_mask,
        )

    def step(self, x: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Run T >= 1 new positions x (N, T, C); returns (N, T, C) and the next state."""
        mixers = []
        for layer, mixer, source in zip(self._layers(), state.mixers, state.sources, strict=True):
            x, mixer = layer.step(x, mixer, source, state.src_mask)
            mixers.append(mixer)
        return self.norm(x), replace(state, position=state.position + x.shape[1], mixers=mixers)

    def _layers(self) -> Iterator[DecoderLayer]:
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            yield layer
