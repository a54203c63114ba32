"""Rows of logits over a vocabulary: their partition function, and the largest in order."""

import struct
from math import inf

import torch
from torch import Tensor

from lightconv_mt.ops.dispatch import Backend
from lightconv_mt.ops.library import enough_memory, load_library
from lightconv_mt.ops.native import KERNEL_TYPES

_CALL = struct.Struct("=2Q4q")  # `Call` and `RankCall` of csrc/best_tokens.cpp
_RANK_CALL = struct.Struct("=6Q6q")
# Candidates that `topk` is asked for beyond those needed: equal values at the cut are then nearly
# always all among them, and a full sort is not needed to break the tie.
SPARE_CANDIDATES = 8


def log_partition(logits: Tensor, *, backend: Backend) -> Tensor:
    """Logarithm of the sum of exponentials of each row.

    Args:
        logits: (N, V) float.
        backend: `native` for the C++ kernel, any other for plain torch.

    Returns:
        (N,) float32, or float64 for float64 logits; NaN where a logit is NaN.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    if backend is not Backend.native:
        return logits.to(wide).logsumexp(-1)
    logits = logits.contiguous()
    found = torch.empty(len(logits), dtype=wide)
    call = _CALL.pack(
        logits.data_ptr(),
        found.data_ptr(),
        *logits.shape,
        torch.get_num_threads(),
        KERNEL_TYPES[logits.dtype],
    )
    if load_library().lcmt_log_partition(call):
        raise TypeError(f"lcmt_log_partition: no kernel for {logits.dtype}")
    return found


def best_tokens(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row in order; equal values by id.

    Args:
        logits: (N, V) float; NaN counts as impossible, as -inf does.
        k: how many, 1 to V.

    Returns:
        Values (N, k), float32 or float64 as `log_partition`'s, and ids (N, k) int64. Where fewer
        are possible, others follow with -inf.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    logits = logits.to(wide).nan_to_num(nan=-inf, posinf=inf, neginf=-inf)
    width = min(k + SPARE_CANDIDATES, logits.shape[1])
    values, ids = logits.topk(width)
    if width < logits.shape[1]:
        tied = (values[:, k - 1] == values[:, -1]) & (values[:, -1] > -inf)
        if bool(tied.any()):
            ordered, order = logits[tied].sort(dim=1, descending=True, stable=True)
            values[tied], ids[tied] = ordered[:, :width], order[:, :width]
    by_id = ids.argsort(1)
    ids = ids.gather(1, by_id)
    values, by_value = values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    return values[:, :k], ids.gather(1, by_value)[:, :k]


def best_continuations(
    logits: Tensor, partition: Tensor, totals: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The C++ form of `decode.candidates.rank_continuations`, which defines it."""
    batch, beam = totals.shape
    k = min(k, beam * min(k, logits.shape[1]))
    logits, totals = logits.contiguous(), totals.contiguous()
    wide = torch.promote_types(logits.dtype, torch.float32)
    partition = partition.to(wide).contiguous()
    scores = torch.empty(batch, k, dtype=torch.float64)
    rows, words = torch.empty(2, batch, k, dtype=torch.int64)
    call = _RANK_CALL.pack(
        *(tensor.data_ptr() for tensor in (logits, partition, totals, scores, rows, words)),
        batch,
        beam,
        logits.shape[1],
        k,
        torch.get_num_threads(),
        KERNEL_TYPES[logits.dtype],
    )
    code = load_library().lcmt_best_continuations(call)
    if enough_memory(code, "lcmt_best_continuations", logits.shape):
        raise TypeError(f"lcmt_best_continuations: no kernel for {logits.dtype}")
    return scores, rows, words
