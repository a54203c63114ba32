"""The encoder in C++ for CPUs; `model/encoder.py` is its definition."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightconv_mt.model.decoder import DecoderLayer
from lightconv_mt.model.embedding import FIRST_POSITION, sinusoidal_positions
from lightconv_mt.model.encoder import EncoderLayer
from lightconv_mt.model.native_mixer import add_norm, parts_of, unsupported_layers
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops.decoder_step import LANES, Program
from lightconv_mt.ops.encode import encode


@dataclass(frozen=True)
class SourceKeys:
    """What each layer of the decoder reads of B sources, anything at padding.

    Attributes:
        keys: one (B, C, room) float32 a layer, C of the decoder.
        values: one (B, room, C) float32 a layer.
        lengths: (B,) int64.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor

    def repeat(self, count: int) -> "SourceKeys":
        """Every source `count` times in a row."""
        return SourceKeys(
            [each.repeat_interleave(count, 0) for each in self.keys],
            [each.repeat_interleave(count, 0) for each in self.values],
            self.lengths.repeat_interleave(count),
        )


class NativeEncoder:
    """Encodes as `Seq2SeqTransformer.encode`, whose weights it holds a copy of.

    What it gives for a source does not depend on those beside it or on padding, bit for bit.
    """

    def __init__(self, model: Seq2SeqTransformer, dtype: torch.dtype) -> None:
        """Pack the weights.

        Args:
            model: on the CPU, with mixers for which `unsupported_encoder` is None.
            dtype: of the matrices, as for `NativeDecoder`.
        """
        assert unsupported_encoder(model) is None, unsupported_encoder(model)
        self.dim = model.src_embedding.weight.shape[1]
        self.places = torch.empty(0, self.dim)
        layers, sources, root = Program(), Program(), Program()
        encoder_layers = [each for each in model.encoder.layers if isinstance(each, EncoderLayer)]
        parts = [parts_of(layer.mixer) for layer in encoder_layers]
        for layer, mixer in zip(encoder_layers, parts, strict=True):
            mixer.add_inputs(layers, dtype)
            feed_forward = layer.feed_forward
            for linear in (mixer.output, feed_forward.inner, feed_forward.outer):
                layers.add_matrix(linear.weight, linear.bias, dtype)
            for sublayer in (layer.mixer_sublayer, layer.feed_forward_sublayer):
                add_norm(layers, sublayer.norm)
        readers = [each for each in model.decoder.layers if isinstance(each, DecoderLayer)]
        for reader in readers:
            key, value = reader.source_attention.key, reader.source_attention.value
            weight, bias = torch.cat([key.weight, value.weight]), torch.cat([key.bias, value.bias])
            sources.add_matrix(weight, bias, dtype)
        self.readers = len(readers)
        self.reader_dim = readers[0].source_attention.key.out_features if readers else 0
        norm = model.encoder.norm
        root.add_numbers(
            self.dim,
            len(parts),
            isinstance(norm, nn.LayerNorm),
            max((len(each.weight) for each in parts), default=0),
            max((each.predicted_taps for each in parts), default=0),
        )
        root.add_tensor(layers.as_tensor())
        root.add_tensor(model.src_embedding.weight.float())
        root.add_tensor(torch.tensor([self.dim**0.5]))
        add_norm(root, norm)
        root.add_numbers(self.readers, self.reader_dim)
        root.add_tensor(sources.as_tensor())
        self._model = root.as_tensor()
        self._tensors = [*layers.tensors, *sources.tensors, *root.tensors]

    def encode(self, src: Tensor, src_mask: Tensor) -> Tensor:
        """Encode src (B, S) int64, padded on the right as src_mask (B, S) bool: (B, S, C)."""
        output = torch.zeros(*src.shape, self.dim)
        self._run(src, src_mask.sum(1), output=output)
        return output

    def keys(self, src: Tensor, src_mask: Tensor) -> SourceKeys:
        """Encode likewise, to what the layers of the decoder read."""
        (batch, length), lengths = src.shape, src_mask.sum(1)
        room, dim = -(-length // LANES) * LANES, self.reader_dim
        # One after the other in one piece of memory: fewer to allocate.
        floats = torch.empty(2 * self.readers, batch * room * dim).unbind()
        keys = [each.view(batch, dim, room) for each in floats[: self.readers]]
        values = [each.view(batch, room, dim) for each in floats[self.readers :]]
        self._run(src, lengths, readers=list(zip(keys, values, strict=True)))
        return SourceKeys(keys, values, lengths)

    def _run(
        self,
        src: Tensor,
        lengths: Tensor,
        *,
        output: Tensor | None = None,
        readers: list[tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        if src.shape[1] > len(self.places):
            positions = torch.arange(2 * src.shape[1])[None] + FIRST_POSITION
            self.places = sinusoidal_positions(positions, self.dim)[0].contiguous()
        encode(
            self._model,
            tokens=src.contiguous(),
            lengths=lengths,
            places=self.places,
            output=output,
            readers=readers or (),
        )


def unsupported_encoder(model: Seq2SeqTransformer) -> str | None:
    """Why the C++ encoder cannot run a model, or None where it can."""
    return unsupported_layers(model.encoder.layers)
