"""The encoder-decoder: joins both, with encoding and decoding as separate methods."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn

from lightconv_mt.errors import ConfigError, suggest
from lightconv_mt.mixers import MixerConfig, MixerSlot
from lightconv_mt.model.decoder import Decoder, DecoderLayer, DecoderState
from lightconv_mt.model.embedding import FIRST_POSITION, TokenEmbedding, token_positions
from lightconv_mt.model.encoder import Encoder, EncoderLayer
from lightconv_mt.model.layers import FeedForward, SourceAttention
from lightconv_mt.ops.dispatch import Backend


class Tying(Enum):
    """Which of the three (V, C) tables are one: none, target embedding and output, or all three."""

    none = "none"
    decoder = "decoder"
    all = "all"


@dataclass(kw_only=True)
class ModelConfig:
    """Sizes and dropouts of the encoder-decoder; a decoder size of None is the encoder's.

    A stack of several mixers lists a name for each layer, from the first one up: that of the side's
    own mixer, or a key of `mixers`.
    """

    mixer: MixerConfig
    encoder_mixer: MixerConfig | None = None  # None: mixer
    decoder_mixer: MixerConfig | None = None
    encoder_mixers: list[str] | None = None  # None: encoder_mixer in every layer
    decoder_mixers: list[str] | None = None
    dim: int = 512
    ffn_dim: int = 2048
    num_heads: int = 8
    encoder_layers: int = 7
    decoder_layers: int = 6
    decoder_dim: int | None = None
    decoder_ffn_dim: int | None = None
    decoder_num_heads: int | None = None
    pre_norm: bool = False
    tying: Tying = Tying.all
    dropout: float = 0.1
    attention_dropout: float = 0.0
    relu_dropout: float = 0.0
    mixers: dict[str, MixerConfig] = field(default_factory=dict)  # what else the lists name

    def __post_init__(self) -> None:
        for key in ("dim", "ffn_dim", "num_heads", "encoder_layers", "decoder_layers"):
            if getattr(self, key) < 1:
                raise ConfigError(f"model.{key} is {getattr(self, key)}; give 1 or more")
        for key in ("decoder_dim", "decoder_ffn_dim", "decoder_num_heads"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(
                    f"model.{key} is {value}; give 1 or more, or null for the encoder's"
                )
        for key in ("dropout", "attention_dropout", "relu_dropout"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise ConfigError(
                    f"model.{key} is {getattr(self, key)}; give a probability in [0, 1)"
                )
        dim, heads = self.decoder_dim or self.dim, self.decoder_num_heads or self.num_heads
        if dim % heads:
            raise ConfigError(
                f"the decoder's {dim} channels cannot be shared by {heads} heads; "
                f"change model.num_heads"
            )
        if self.tying is Tying.all and dim != self.dim:
            raise ConfigError(
                f"model.tying=all needs one size, "
                f"but model.dim is {self.dim} and model.decoder_dim {dim}; "
                f"set model.tying=decoder"
            )
        for side in ("encoder", "decoder"):
            for key, mixer in self._used_mixers(side):
                try:
                    mixer.check_layers(side=side, num_layers=getattr(self, f"{side}_layers"))
                except ConfigError as error:
                    raise ConfigError(str(error).replace("model.mixer.", f"{key}.")) from error

    def layer_mixer(self, side: str, layer: int) -> MixerConfig:
        """The mixer of one layer of a side, encoder or decoder."""
        used = [mixer for _, mixer in self._used_mixers(side)]
        return used[layer % len(used)]

    def _used_mixers(self, side: str) -> Iterator[tuple[str, MixerConfig]]:
        """Key and configuration of every layer's mixer; only one if they are all the same."""
        own_key = f"model.{side}_mixer" if getattr(self, f"{side}_mixer") else "model.mixer"
        own = getattr(self, f"{side}_mixer") or self.mixer
        names, key = getattr(self, f"{side}_mixers"), f"model.{side}_mixers"
        if names is None:
            names = [own.name]
        elif len(names) not in (1, getattr(self, f"{side}_layers")):
            raise ConfigError(
                f"{key} has {len(names)} names but model.{side}_layers is "
                f"{getattr(self, f'{side}_layers')}; give one mixer per layer, or one for all"
            )
        for name in names:
            if name == own.name:
                yield own_key, own
            elif name in self.mixers:
                yield f"model.mixers.{name}", self.mixers[name]
            else:
                raise ConfigError(f"{key} has {name!r}; {suggest(name, {own.name, *self.mixers})}")


class Seq2SeqTransformer(nn.Module):
    """Encoder-decoder whose self-attention slots hold token mixers (Wu et al., 2019, section 5)."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        src_vocab_size: int,
        tgt_vocab_size: int,
        src_pad_id: int,
        tgt_pad_id: int,
        backend: Backend = Backend.auto,
    ) -> None:
        """Build the model with fresh parameters.

        Args:
            config: sizes, mixers and dropouts.
            src_vocab_size: V of the source side.
            tgt_vocab_size: V of the target side.
            src_pad_id: padding on the source side.
            tgt_pad_id: padding on the target side.
            backend: implementation of the kernels, resolved.

        Raises:
            ConfigError: when tying=all meets two vocabularies, or heads do not divide channels.
        """
        super().__init__()
        if config.tying is Tying.all and (src_vocab_size, src_pad_id) != (
            tgt_vocab_size,
            tgt_pad_id,
        ):
            raise ConfigError(
                f"model.tying=all needs one vocabulary, "
                f"but the source has {src_vocab_size} pieces and the target "
                f"{tgt_vocab_size}; set tokenizer.vocabulary=joint or model.tying=decoder"
            )
        self.config, self.backend = config, backend
        dim, decoder_dim = config.dim, config.decoder_dim or config.dim
        self.src_embedding = TokenEmbedding(
            src_vocab_size, dim, pad_id=src_pad_id, dropout=config.dropout, backend=backend
        )
        self.tgt_embedding = (
            self.src_embedding
            if config.tying is Tying.all
            else TokenEmbedding(
                tgt_vocab_size,
                decoder_dim,
                pad_id=tgt_pad_id,
                dropout=config.dropout,
                backend=backend,
            )
        )
        self.output_projection = (
            nn.Parameter(torch.empty(tgt_vocab_size, decoder_dim).normal_(std=decoder_dim**-0.5))
            if config.tying is Tying.none
            else None
        )
        encoder_layers = [
            _encoder_layer(config, layer, backend) for layer in range(config.encoder_layers)
        ]
        decoder_layers = [
            _decoder_layer(config, layer, backend) for layer in range(config.decoder_layers)
        ]
        self.encoder = Encoder(encoder_layers, dim=dim, pre_norm=config.pre_norm)
        self.decoder = Decoder(decoder_layers, dim=decoder_dim, pre_norm=config.pre_norm)

    def forward(self, src: Tensor, src_mask: Tensor, tgt_in: Tensor, tgt_mask: Tensor) -> Tensor:
        """Decoder output before the projection to the vocabulary, given the target.

        Args:
            src: (B, S) int64, ends with EOS.
            src_mask: (B, S) bool.
            tgt_in: (B, T) int64, begins with BOS, padded on the right.
            tgt_mask: (B, T) bool.

        Returns:
            (B, T, C); `project` turns it into logits.
        """
        memory = self.encode(src, src_mask)
        return self.decoder(
            self.tgt_embedding(tgt_in, token_positions(tgt_mask)), tgt_mask, memory, src_mask
        )

    @property
    def output_weight(self) -> Tensor:
        """The (V, C) projection to the vocabulary, the target embedding when tied."""
        return (
            self.tgt_embedding.weight if self.output_projection is None else self.output_projection
        )

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of decoder outputs (..., C)."""
        return nn.functional.linear(hidden, self.output_weight)

    def encode(self, src: Tensor, src_mask: Tensor) -> Tensor:
        """Encode src (B, S) int64 with src_mask (B, S) bool: (B, S, C)."""
        return self.encoder(self.src_embedding(src, token_positions(src_mask)), src_mask)

    def start(self, memory: Tensor, src_mask: Tensor, beam_size: int) -> DecoderState:
        """Decoder state before BOS, beam_size rows for each of the B encoded sources."""
        return self.decoder.start(memory, src_mask, beam_size)

    def decode_step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Read T >= 1 new tokens of every row.

        Args:
            tokens: (N, T) int64, no padding.
            state: of N rows.

        Returns:
            logits (N, T, V) and the next state.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None] + (
            state.position + FIRST_POSITION
        )
        hidden, state = self.decoder.step(self.tgt_embedding(tokens, positions), state)
        return self.project(hidden), state

    def source_attention(
        self,
        memory: Tensor,
        src_mask: Tensor,
        tgt_in: Tensor,
        tgt_mask: Tensor,
        *,
        layer: int | None = None,
    ) -> Tensor:
        """Where each step of decoding a given target looks in the source: the mean over the heads.

        Args:
            memory: (B, S, C) the encoded source.
            src_mask: (B, S) bool.
            tgt_in: (B, T) int64, begins with BOS, padded on the right.
            tgt_mask: (B, T) bool.
            layer: of the decoder, from 1; None is the last but one of three or more, which aligns
                best (Garg et al., 2019), and the last of fewer.

        Returns:
            (B, T, S) float32; row t is of the step that predicts token t of the target.

        Raises:
            ConfigError: when there is no such layer.
        """
        count = len(self.decoder.layers)
        chosen = count - (count > 2) if layer is None else layer
        if chosen > count:
            raise ConfigError(
                f"decode.attention_layer is {chosen}, but the decoder has {count} layers; "
                f"give 1 to {count}, or null"
            )
        x = self.tgt_embedding(tgt_in, token_positions(tgt_mask))
        weights = self.decoder.source_weights(x, tgt_mask, memory, src_mask, layer=chosen - 1)
        return weights.mean(1)


def _encoder_layer(config: ModelConfig, layer: int, backend: Backend) -> EncoderLayer:
    slot = MixerSlot(
        layer=layer,
        num_layers=config.encoder_layers,
        causal=False,
        num_heads=config.num_heads,
        ffn_dim=config.ffn_dim,
        backend=backend,
    )
    return EncoderLayer(
        config.layer_mixer("encoder", layer).build(dim=config.dim, slot=slot),
        FeedForward(config.dim, config.ffn_dim, relu_dropout=config.relu_dropout, backend=backend),
        dim=config.dim,
        pre_norm=config.pre_norm,
        dropout=config.dropout,
        backend=backend,
    )


def _decoder_layer(config: ModelConfig, layer: int, backend: Backend) -> DecoderLayer:
    dim, heads = config.decoder_dim or config.dim, config.decoder_num_heads or config.num_heads
    ffn_dim = config.decoder_ffn_dim or config.ffn_dim
    slot = MixerSlot(
        layer=layer,
        num_layers=config.decoder_layers,
        causal=True,
        num_heads=heads,
        ffn_dim=ffn_dim,
        backend=backend,
    )
    return DecoderLayer(
        config.layer_mixer("decoder", layer).build(dim=dim, slot=slot),
        SourceAttention(
            dim,
            config.dim,
            num_heads=heads,
            attention_dropout=config.attention_dropout,
            backend=backend,
        ),
        FeedForward(dim, ffn_dim, relu_dropout=config.relu_dropout, backend=backend),
        dim=dim,
        pre_norm=config.pre_norm,
        dropout=config.dropout,
        backend=backend,
    )
