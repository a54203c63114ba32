"""The decoder, step by step, in C++ for CPUs; `model/decoder.py` is its definition."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightconv_mt.mixers import TokenMixer
from lightconv_mt.mixers.attention import AttentionMixer
from lightconv_mt.mixers.conv_block import ConvBlock
from lightconv_mt.mixers.depthwise import DepthwiseMixer
from lightconv_mt.mixers.dynamicconv import DynamicConvMixer, Query
from lightconv_mt.model.decoder import DecoderLayer
from lightconv_mt.model.embedding import FIRST_POSITION, sinusoidal_positions
from lightconv_mt.model.token_lists import TokenLists
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops.decoder_step import LANES, Lists, Program, decoder_step, output_rows

FIXED_KERNELS, PREDICTED_KERNELS, ATTENTION = range(3)  # `Mixer` of csrc/decoder.cpp
FIRST_CAPACITY = 32  # positions there is room for at first, where all of them are remembered


@dataclass
class LayerMemory:
    """What one layer remembers of sentences that came together: see `Memory` of csrc/decoder.cpp.

    Attributes:
        frames: (slots, capacity, beam, channels) float32, by position.
        keys: (slots, C, room) float32 of the source.
        values: (slots, room, C) float32 of the source.
        grows: whether every position is remembered, not only the last `capacity`.
    """

    frames: Tensor
    keys: Tensor
    values: Tensor
    grows: bool

    def __post_init__(self) -> None:
        for tensor in (self.frames, self.keys, self.values):
            assert tensor.is_contiguous() and tensor.dtype is torch.float32, tensor.stride()

    @property
    def words(self) -> list[int]:
        """The five words of a `Memory`."""
        pointers = [tensor.data_ptr() for tensor in (self.frames, self.keys, self.values)]
        return [pointers[0], self.frames.shape[1], *pointers[1:], self.keys.shape[2]]


Arena = list[LayerMemory]  # one a layer


@dataclass(frozen=True, kw_only=True)
class NativeState:
    """What decoding remembers of N = B x beam rows, row n belonging to sentence n // beam.

    The memory is shared by all states of a search and written by a step, so a state is used once.

    Attributes:
        memory: the arenas of sentences that came together.
        arenas: (B,) int64, in which of them each sentence lies.
        slots: (B,) int64, and where in it.
        lengths: (B,) int64, source tokens.
        positions: (B,) int64, target tokens read so far.
        ancestors: (N, stride) int32, in which row of the beam each earlier position lies.
        lists: the tokens that each sentence may say; None for all.
        addresses: of the memory, as C++ reads it; None before they are known.
    """

    memory: list[Arena]
    arenas: Tensor
    slots: Tensor
    lengths: Tensor
    positions: Tensor
    ancestors: Tensor
    lists: TokenLists | None = None
    addresses: Tensor | None = None

    def reorder(self, rows: Tensor) -> "NativeState":
        """Take the rows `rows` (N',) int64, in that order; nothing but `ancestors` moves."""
        return replace(self, ancestors=self.ancestors.index_select(0, rows))

    def keep(self, sentences: Tensor) -> "NativeState":
        """Take the sentences `sentences` (B',) int64; rows are taken by `reorder`."""
        memory, arenas, addresses = self.memory, self.arenas[sentences], self.addresses
        if len(memory) > 1:
            used, arenas = arenas.unique(return_inverse=True)
            memory, addresses = [memory[arena] for arena in used.tolist()], None
        return replace(
            self,
            memory=memory,
            addresses=addresses,
            arenas=arenas,
            slots=self.slots[sentences],
            lengths=self.lengths[sentences],
            positions=self.positions[sentences],
            lists=None if self.lists is None else self.lists.keep(sentences),
        )

    def join(self, others: "NativeState") -> "NativeState":
        """Put sentences and rows of others behind its own."""
        assert (self.lists is None) == (others.lists is None)
        stride = max(self.ancestors.shape[1], others.ancestors.shape[1])
        ancestors = [
            F.pad(each, (0, stride - each.shape[1])) for each in (self.ancestors, others.ancestors)
        ]
        return NativeState(
            memory=self.memory + others.memory,
            arenas=torch.cat([self.arenas, others.arenas + len(self.memory)]),
            slots=torch.cat([self.slots, others.slots]),
            lengths=torch.cat([self.lengths, others.lengths]),
            positions=torch.cat([self.positions, others.positions]),
            ancestors=torch.cat(ancestors),
            lists=self.lists and others.lists and self.lists.join(others.lists),
        )


class NativeDecoder:
    """Steps as `Seq2SeqTransformer.start` and `decode_step`, whose weights it holds a copy of.

    A row's logits do not depend on the rows beside it, bit for bit.
    """

    def __init__(self, model: Seq2SeqTransformer, dtype: torch.dtype) -> None:
        """Pack the weights.

        Args:
            model: on the CPU, with mixers for which `unsupported` is None.
            dtype: of the matrices: float32, bfloat16, or int8 with a scale for each output and
                activations rounded to 8 bits as they come. All else is float32.
        """
        assert unsupported(model) is None, unsupported(model)
        self.layers = [layer for layer in model.decoder.layers if isinstance(layer, DecoderLayer)]
        self.vocab_size, self.dim = model.output_weight.shape
        self.places = torch.empty(0, self.dim)
        self._grows = any(not isinstance(layer.mixer, ConvBlock) for layer in self.layers)
        layers = Program()
        for layer in self.layers:
            _add_layer(layers, layer, dtype)
        self._layers, self._tensors = layers.as_tensor(), layers.tensors
        norm = model.decoder.norm
        root = Program()
        root.add_numbers(
            self.dim,
            len(self.layers),
            isinstance(norm, nn.LayerNorm),
            max(layer.feed_forward.inner.out_features for layer in self.layers),
            max(_channels(layer.mixer) for layer in self.layers),
            max(_predicted_taps(layer.mixer) for layer in self.layers),
        )
        root.add_tensor(self._layers)
        root.add_tensor(model.tgt_embedding.weight.float())
        root.add_tensor(torch.tensor([self.dim**0.5]))
        _add_norm(root, norm if isinstance(norm, nn.LayerNorm) else None)
        self._panels = root.add_matrix(model.output_weight, None, dtype)
        self._model = root.as_tensor()
        self._tensors += root.tensors

    @cached_property
    def _outputs(self) -> Tensor:
        assert self._panels is not None
        return output_rows(self._panels)

    def start(
        self,
        memory: Tensor,
        src_mask: Tensor,
        beam_size: int,
        lists: TokenLists | None = None,
    ) -> NativeState:
        """State before BOS, beam_size rows for each of the B encoded sources.

        Args:
            memory: (B, S, C) float.
            src_mask: (B, S) bool, padded on the right.
            beam_size: rows of a sentence.
            lists: as `ListedDecoder`.
        """
        batch, length = src_mask.shape
        room = -(-length // LANES) * LANES
        layers: Arena = []
        stride = 1
        for layer in self.layers:
            attention = layer.source_attention
            keys = attention.key(memory).float().transpose(1, 2)
            values = attention.value(memory).float()
            mixer = layer.mixer
            grows = not isinstance(mixer, ConvBlock)
            capacity = mixer.kernel_size if isinstance(mixer, ConvBlock) else FIRST_CAPACITY
            stride = max(stride, capacity)
            channels = _channels(mixer) * (2 if grows else 1)
            layers.append(
                LayerMemory(
                    torch.empty(batch, capacity, beam_size, channels),
                    F.pad(keys, (0, room - length)).contiguous(),
                    F.pad(values, (0, 0, 0, room - length)).contiguous(),
                    grows=grows,
                )
            )
        return NativeState(
            memory=[layers],
            arenas=torch.zeros(batch, dtype=torch.int64),
            slots=torch.arange(batch),
            lengths=src_mask.sum(1),
            positions=torch.zeros(batch, dtype=torch.int64),
            ancestors=torch.zeros(batch * beam_size, stride, dtype=torch.int32),
            lists=lists,
        )

    def decode_step(self, tokens: Tensor, state: NativeState) -> tuple[Tensor, NativeState]:
        """Read T >= 1 new tokens of every row.

        Args:
            tokens: (N, T) int64.
            state: of N rows.

        Returns:
            logits (N, T, V) float32, or (N, T, L) where there are lists, and the next state.
        """
        found = []
        own = state.lists
        lists = None if own is None else Lists(own.tokens, own.sizes, self._outputs)
        for column in tokens.unbind(1):
            state = self._make_room(state)
            addresses = state.addresses
            if addresses is None:
                words = [word for arena in state.memory for layer in arena for word in layer.words]
                addresses = torch.tensor(words)
            logits = decoder_step(
                self._model,
                addresses,
                tokens=column.contiguous(),
                arenas=state.arenas,
                slots=state.slots,
                positions=state.positions,
                lengths=state.lengths,
                ancestors=state.ancestors,
                places=self.places,
                vocab_size=self.vocab_size,
                longest_source=max(arena[0].keys.shape[2] for arena in state.memory),
                lists=lists,
            )
            state = replace(state, positions=state.positions + 1, addresses=addresses)
            found.append(logits[:, None])
        return found[0] if len(found) == 1 else torch.cat(found, 1), state

    def _make_room(self, state: NativeState) -> NativeState:
        """Room for one more position, in steps that double it."""
        needed = int(state.positions.max()) + 1
        if needed > len(self.places):
            count = max(2 * len(self.places), needed, FIRST_CAPACITY)
            positions = torch.arange(count)[None] + FIRST_POSITION
            self.places = sinusoidal_positions(positions, self.dim)[0].contiguous()
        if not self._grows:
            return state
        growing = [layer for arena in state.memory for layer in arena if layer.grows]
        for layer in growing:
            while needed > layer.frames.shape[1]:
                layer.frames = torch.cat([layer.frames, torch.empty_like(layer.frames)], 1)
                state = replace(state, addresses=None)
        stride = max(layer.frames.shape[1] for layer in growing)
        if stride > state.ancestors.shape[1]:
            more = stride - state.ancestors.shape[1]
            return replace(state, ancestors=F.pad(state.ancestors, (0, more)))
        return state


def unsupported(model: Seq2SeqTransformer) -> str | None:
    """Why the C++ decoder cannot run a model, or None where it can."""
    for layer in model.decoder.layers:
        assert isinstance(layer, DecoderLayer)
        mixer = layer.mixer
        if isinstance(mixer, DynamicConvMixer):
            if mixer.config.renormalize_edges or mixer.config.query is not Query.convolved:
                return "it has no kernels renormalised at the edges or predicted from the input"
        elif not isinstance(mixer, DepthwiseMixer | AttentionMixer):
            return f"it has no {type(mixer).__name__}"
    return None


def _channels(mixer: TokenMixer) -> int:
    if isinstance(mixer, ConvBlock):
        return mixer.conv_dim
    assert isinstance(mixer, AttentionMixer)
    return mixer.query.out_features


def _predicted_taps(mixer: TokenMixer) -> int:
    return mixer.num_heads * mixer.kernel_size if isinstance(mixer, DynamicConvMixer) else 0


def _add_layer(program: Program, layer: DecoderLayer, dtype: torch.dtype) -> None:
    """Append a `Layer`."""
    mixer, source, feed_forward = layer.mixer, layer.source_attention, layer.feed_forward
    predictor = taps = None
    if isinstance(mixer, AttentionMixer):
        kind, width, glu, normalize = ATTENTION, mixer.window or 0, False, True
        parts = (mixer.query, mixer.key, mixer.value)
        inputs = torch.cat([part.weight for part in parts]), torch.cat([p.bias for p in parts])
    else:
        assert isinstance(mixer, DepthwiseMixer | DynamicConvMixer)
        width, glu = mixer.kernel_size, mixer.glu
        inputs = mixer.input_projection.weight, mixer.input_projection.bias
        if isinstance(mixer, DynamicConvMixer):
            kind, normalize = PREDICTED_KERNELS, mixer.config.normalize
            predictor = mixer.kernel_predictor.weight
        else:
            kind, normalize = FIXED_KERNELS, mixer.normalize
            kernel = mixer.kernel.float()
            taps = kernel.softmax(-1) if normalize else kernel
    program.add_numbers(kind, width, mixer.num_heads, _channels(mixer), glu, normalize)
    program.add_tensor(taps)
    program.add_matrix(*inputs, dtype)
    program.add_matrix(predictor, None, dtype)
    linears = (
        mixer.output_projection,
        source.query,
        source.output_projection,
        feed_forward.inner,
        feed_forward.outer,
    )
    for linear in linears:
        program.add_matrix(linear.weight, linear.bias, dtype)
    for sublayer in (layer.mixer_sublayer, layer.source_sublayer, layer.feed_forward_sublayer):
        _add_norm(program, sublayer.norm)
    program.add_numbers(source.num_heads)


def _add_norm(program: Program, norm: nn.LayerNorm | None) -> None:
    program.add_tensor(None if norm is None else norm.weight.float())
    program.add_tensor(None if norm is None else norm.bias.float())
