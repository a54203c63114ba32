"""One step of a whole decoder in C++: how weights are packed for it, and the call."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lightconv_mt.ops.library import load_library

PANEL = 32  # `kPanel` of csrc/product.h
# Of a matrix: its number there, and inputs that fill four bytes.
WEIGHT_TYPES = {torch.float32: (0, 1), torch.bfloat16: (1, 2), torch.int8: (2, 4)}

LANES = 16  # four bytes each: vectors of the widest machine, to which C++ wants rows padded

STEP = struct.Struct("=13Q7q")  # `Call` of csrc/decoder.h


@dataclass
class Program:
    """Eight-byte words that C++ reads as structures, and the tensors that they point to."""

    words: list[int] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)

    def add_numbers(self, *numbers: int) -> None:
        """Append integers."""
        self.words += numbers

    def add_tensor(self, tensor: Tensor | None) -> None:
        """Append the address of a contiguous tensor, or null."""
        if tensor is None:
            self.words.append(0)
            return
        tensor = tensor.detach().contiguous()
        self.tensors.append(tensor)
        self.words.append(tensor.data_ptr())

    def add_matrix(
        self, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """Append a `Matrix`: weight (outputs, inputs) to be kept as `dtype`; None for none.

        Returns:
            Its panels, as `pack_matrix` gives them.
        """
        if weight is None:
            self.words += [0] * 7
            return None
        panels, scales, excess = pack_matrix(weight, dtype)
        self.add_tensor(panels)
        self.add_tensor(None if bias is None else bias.float())
        self.add_tensor(scales)
        self.add_tensor(excess)
        self.add_numbers(weight.shape[1], weight.shape[0], WEIGHT_TYPES[dtype][0])
        return panels

    def as_tensor(self) -> Tensor:
        """The words, (len,) int64."""
        return torch.tensor(self.words, dtype=torch.int64)


def pack_matrix(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Put the weights that are read together side by side.

    Args:
        weight: (outputs, inputs) float.
        dtype: float32, bfloat16, or int8 for integers times a scale of each output.

    Returns:
        Panels (outputs / PANEL, inputs / group, PANEL, group) with zeros beyond, and for int8 the
        scales (outputs,) float32 and 128 times the sum of each output's integers, int32.
    """
    weight = weight.detach().float()
    outputs, inputs = weight.shape
    scales = excess = None
    if dtype is torch.int8:
        scales = weight.abs().amax(1) / 127
        weight = (weight / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
        excess = (128 * weight.sum(1)).int()
    group = WEIGHT_TYPES[dtype][1]
    padded = weight.new_zeros(-(-outputs // PANEL) * PANEL, -(-inputs // group) * group)
    padded[:outputs, :inputs] = weight
    panels = padded.view(len(padded) // PANEL, PANEL, -1, group).transpose(1, 2)
    return panels.to(dtype).contiguous(), scales, excess


def output_rows(panels: Tensor) -> Tensor:
    """The outputs of `pack_matrix` one after the other: (outputs, groups, group), zeros beyond."""
    rows = panels.transpose(1, 2).flatten(0, 1)
    return F.pad(rows, (0, 0, 0, -rows.shape[1] % LANES)).contiguous()


@dataclass(frozen=True)
class Lists:
    """The tokens that each of B sentences may say.

    Attributes:
        tokens: (B, L) int64, any behind the end of a list.
        sizes: (B,) int64, of the lists.
        outputs: `output_rows` of the projection to the vocabulary.
    """

    tokens: Tensor
    sizes: Tensor
    outputs: Tensor


def pack_step(
    model: Tensor,
    memory: Tensor,
    *,
    tokens: Tensor,
    arenas: Tensor,
    slots: Tensor,
    positions: Tensor,
    lengths: Tensor,
    ancestors: Tensor,
    places: Tensor,
    logits: Tensor,
    longest_source: int,
    lists: Lists | None = None,
) -> bytes:
    """Describe a step that reads one token of every row; all tensors are contiguous, on the CPU.

    Args:
        model: `Model` of csrc/decoder.cpp.
        memory: `Memory` of each layer of each arena; the frames are written.
        tokens: (N,) int64.
        arenas: (B,) int64, in which arena each sentence's memory lies.
        slots: (B,) int64, and where in it.
        positions: (B,) int64, tokens read before.
        lengths: (B,) int64, source tokens.
        ancestors: (N, stride) int32, the row of the beam that held each earlier position; written.
        places: (positions, C) float32, position vectors.
        logits: (N, V) float32, or (N, L) where there are lists; written.
        longest_source: the most room that an arena has for a source.
        lists: where a sentence may say some tokens only; `tokens` are their places then.

    Returns:
        `Call` of csrc/decoder.h, as long as the tensors live.
    """
    addresses: Sequence[Tensor] = (
        model,
        memory,
        tokens,
        arenas,
        slots,
        positions,
        lengths,
        ancestors,
        places,
        logits,
        *(() if lists is None else (lists.tokens, lists.sizes, lists.outputs)),
    )
    assert all(tensor.is_contiguous() for tensor in addresses)
    return STEP.pack(
        *(tensor.data_ptr() for tensor in addresses),
        *((0, 0, 0) if lists is None else ()),
        len(tokens),
        len(tokens) // len(slots),
        ancestors.shape[1],
        longest_source,
        torch.get_num_threads(),
        logits.shape[1],
        0 if lists is None else lists.outputs.shape[1],
    )


def decoder_step(step: bytes) -> None:
    """Make a step that `pack_step` describes."""
    if load_library().lcmt_decoder_step(step):
        raise MemoryError("a step of the decoder: not enough memory")
