"""A whole encoder in C++: the call."""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from lightconv_mt.ops.library import load_library

_CALL = struct.Struct("=6Q4q")  # `Call` of csrc/encoder.cpp


def encode(
    model: Tensor,
    *,
    tokens: Tensor,
    lengths: Tensor,
    places: Tensor,
    output: Tensor | None = None,
    readers: Sequence[tuple[Tensor, Tensor]] = (),
) -> None:
    """Encode sources; all tensors are contiguous, on the CPU.

    Args:
        model: `Model` of csrc/encoder.cpp.
        tokens: (B, S) int64, padded on the right.
        lengths: (B,) int64.
        places: (positions, C) float32, position vectors; S of them or more.
        output: (B, S, C) float32, written but for padding.
        readers: for each layer that reads the sources, or for none: keys (B, D, room) and values
            (B, room, D) float32, written but for padding.
    """
    addresses = [tensor.data_ptr() for pair in readers for tensor in pair]
    pointers = torch.tensor(addresses, dtype=torch.int64)
    for tensor in (model, tokens, lengths, places):
        assert tensor.is_contiguous()
    call = _CALL.pack(
        model.data_ptr(),
        tokens.data_ptr(),
        lengths.data_ptr(),
        places.data_ptr(),
        0 if output is None else output.data_ptr(),
        pointers.data_ptr() if readers else 0,
        *tokens.shape,
        readers[0][0].shape[2] if readers else 0,
        torch.get_num_threads(),
    )
    if load_library().lcmt_encode(call):
        raise MemoryError(f"the encoder: not enough memory for sources of {tuple(tokens.shape)}")
