"""The decoder, step by step, in C++ for CPUs; `model/decoder.py` is its definition."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightconv_mt.model.decoder import DecoderLayer
from lightconv_mt.model.embedding import FIRST_POSITION, sinusoidal_positions
from lightconv_mt.model.native_encoder import SourceKeys
from lightconv_mt.model.native_mixer import (
    MixerParts,
    add_norm,
    parts_of,
    remembers_all,
    unsupported_layers,
)
from lightconv_mt.model.token_lists import TokenLists
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops.decoder_step import (
    LANES,
    Lists,
    Program,
    decoder_step,
    output_rows,
    pack_step,
)

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
        return self._in_use(
            arenas=self.arenas[sentences],
            slots=self.slots[sentences],
            lengths=self.lengths[sentences],
            positions=self.positions[sentences],
            lists=None if self.lists is None else self.lists.keep(sentences),
        )

    def first(self, count: int) -> "NativeState":
        """Take the first sentences and their rows, in place."""
        rows = len(self.ancestors) // len(self.slots) * count
        return self._in_use(
            arenas=self.arenas[:count],
            slots=self.slots[:count],
            lengths=self.lengths[:count],
            positions=self.positions[:count],
            ancestors=self.ancestors[:rows],
            lists=None if self.lists is None else self.lists.first(count),
        )

    def _in_use(self, *, arenas: Tensor, **others: Any) -> "NativeState":
        """With what is given, and of the memory what it needs."""
        memory, addresses = self.memory, self.addresses
        if len(memory) > 1:
            used, places = arenas.unique(return_inverse=True)
            if len(used) < len(memory):
                memory, addresses, arenas = [memory[each] for each in used.tolist()], None, places
        return replace(self, memory=memory, addresses=addresses, arenas=arenas, **others)

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
        parts = [parts_of(layer.mixer) for layer in self.layers]
        self._memories = [
            _LayerFrames.of(mixer, grows=remembers_all(layer.mixer))
            for layer, mixer in zip(self.layers, parts, strict=True)
        ]
        self._grows = any(each.grows for each in self._memories)
        layers = Program()
        for layer, mixer in zip(self.layers, parts, strict=True):
            _add_layer(layers, layer, mixer, dtype)
        self._layers, self._tensors = layers.as_tensor(), layers.tensors
        norm = model.decoder.norm
        root = Program()
        root.add_numbers(
            self.dim,
            len(self.layers),
            isinstance(norm, nn.LayerNorm),
            max(layer.feed_forward.inner.out_features for layer in self.layers),
            max(mixer.channels for mixer in parts),
            max(mixer.predicted_taps for mixer in parts),
        )
        root.add_tensor(self._layers)
        root.add_tensor(model.tgt_embedding.weight.float())
        root.add_tensor(torch.tensor([self.dim**0.5]))
        add_norm(root, norm)
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
        length = src_mask.shape[1]
        room = -(-length // LANES) * LANES
        keys, values = [], []
        for layer in self.layers:
            key, value = layer.source_attention.key(memory), layer.source_attention.value(memory)
            keys.append(F.pad(key.float().transpose(1, 2), (0, room - length)).contiguous())
            values.append(F.pad(value.float(), (0, 0, 0, room - length)).contiguous())
        return self.begin(SourceKeys(keys, values, src_mask.sum(1)), beam_size, lists)

    def begin(
        self, sources: SourceKeys, beam_size: int, lists: TokenLists | None = None
    ) -> NativeState:
        """State before BOS, beam_size rows for each of the B sources; lists as `ListedDecoder`."""
        batch = len(sources.lengths)
        memories = zip(self._memories, sources.keys, sources.values, strict=True)
        layers = [
            LayerMemory(
                torch.empty(batch, each.capacity, beam_size, each.channels),
                keys,
                values,
                grows=each.grows,
            )
            for each, keys, values in memories
        ]
        stride = max((each.capacity for each in self._memories), default=1)
        return NativeState(
            memory=[layers],
            arenas=torch.zeros(batch, dtype=torch.int64),
            slots=torch.arange(batch),
            lengths=sources.lengths.clone(),
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
        for column in tokens.T.contiguous():  # each lives as long as what points to it
            state = self.make_room(state)
            logits = self.empty_logits(state)
            decoder_step(self.pack_step(column, state, logits))
            state = replace(state, positions=state.positions + 1)
            found.append(logits[:, None])
        return found[0] if len(found) == 1 else torch.cat(found, 1), state

    def empty_logits(self, state: NativeState) -> Tensor:
        """Room for what a step writes: (N, V) float32, or (N, L) where there are lists."""
        lists = state.lists
        width = self.vocab_size if lists is None else lists.tokens.shape[1]
        return torch.empty(len(state.ancestors), width)

    def pack_step(self, tokens: Tensor, state: NativeState, logits: Tensor) -> bytes:
        """Describe a step that reads tokens (N,) int64 and writes logits as of `empty_logits`.

        Args:
            tokens: of N rows.
            state: after `make_room`; its memory and ancestors are written.
            logits: anything.
        """
        assert state.addresses is not None
        own = state.lists
        return pack_step(
            self._model,
            state.addresses,
            tokens=tokens,
            arenas=state.arenas,
            slots=state.slots,
            positions=state.positions,
            lengths=state.lengths,
            ancestors=state.ancestors,
            places=self.places,
            logits=logits,
            longest_source=max(arena[0].keys.shape[2] for arena in state.memory),
            lists=None if own is None else Lists(own.tokens, own.sizes, self._outputs),
        )

    def steps_ahead(self, state: NativeState) -> int:
        """How many steps there is room for."""
        frames = [layer.frames.shape[1] for arena in state.memory for layer in arena if layer.grows]
        return min([len(self.places), *frames]) - int(state.positions.max())

    def make_room(self, state: NativeState) -> NativeState:
        """Room for one more position at least, in steps that double it."""
        needed = int(state.positions.max()) + 1
        if needed > len(self.places):
            count = max(2 * len(self.places), needed, FIRST_CAPACITY)
            positions = torch.arange(count)[None] + FIRST_POSITION
            self.places = sinusoidal_positions(positions, self.dim)[0].contiguous()
        addresses, ancestors = state.addresses, state.ancestors
        if self._grows:
            growing = [layer for arena in state.memory for layer in arena if layer.grows]
            for layer in growing:
                while needed > layer.frames.shape[1]:
                    layer.frames = torch.cat([layer.frames, torch.empty_like(layer.frames)], 1)
                    addresses = None
            stride = max(layer.frames.shape[1] for layer in growing)
            if stride > ancestors.shape[1]:
                ancestors = F.pad(ancestors, (0, stride - ancestors.shape[1]))
        if addresses is None:
            words = [word for arena in state.memory for layer in arena for word in layer.words]
            addresses = torch.tensor(words)
        elif ancestors is state.ancestors:
            return state
        return replace(state, ancestors=ancestors, addresses=addresses)


@dataclass(frozen=True)
class _LayerFrames:
    """What a layer remembers of a row at first: positions, channels, and whether they grow."""

    capacity: int
    channels: int
    grows: bool

    @classmethod
    def of(cls, mixer: MixerParts, *, grows: bool) -> "_LayerFrames":
        """Those of a mixer; attention remembers keys and values."""
        if grows:
            return cls(FIRST_CAPACITY, 2 * mixer.channels, grows=True)
        return cls(mixer.width, mixer.channels, grows=False)


def unsupported(model: Seq2SeqTransformer) -> str | None:
    """Why the C++ decoder cannot run a model, or None where it can."""
    return unsupported_layers(model.decoder.layers)


def _add_layer(
    program: Program, layer: DecoderLayer, mixer: MixerParts, dtype: torch.dtype
) -> None:
    """Append a `Layer`."""
    source, feed_forward = layer.source_attention, layer.feed_forward
    mixer.add_inputs(program, dtype)
    linears = (
        mixer.output,
        source.query,
        source.output_projection,
        feed_forward.inner,
        feed_forward.outer,
    )
    for linear in linears:
        program.add_matrix(linear.weight, linear.bias, dtype)
    for sublayer in (layer.mixer_sublayer, layer.source_sublayer, layer.feed_forward_sublayer):
        add_norm(program, sublayer.norm)
    program.add_numbers(source.num_heads)
