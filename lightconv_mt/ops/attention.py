"""Scaled dot-product attention whose weights can be dropped (Vaswani et al., 2017, section 3.2.1).

torch has no fused CPU kernel with dropout, without which attention takes a tenth of a step.
"""

import struct
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightconv_mt.ops.dispatch import Backend, choose
from lightconv_mt.ops.library import load_library
from lightconv_mt.ops.native import KERNEL_TYPES, rows
from lightconv_mt.ops.register import refuse_second_derivative, register_op

_CALL = struct.Struct("=10Q12q9qd")  # `Call` of csrc/attention.cpp


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
    backend: Backend = Backend.auto,
) -> Tensor:
    """`dropout(softmax(q k^T / sqrt(D))) v`.

    Args:
        query: (B, H, T, D) float.
        key: (B, H, S, D), as the next one in the query's dtype.
        value: (B, H, S, D).
        mask: (B, S) bool, False = never attended to; None: all are. A query that sees nothing
            gets zeros.
        causal: query t sees keys 0..t only.
        dropout: probability of dropping a weight.
        seed: of the C++ kernel's mask, see `keep_mask`; torch's has torch's generator.
        backend: `native` for the C++ kernel, any other for torch's.

    Returns:
        (B, H, T, D), in memory as (B, T, H, D) from the C++ kernel.

    Raises:
        ValueError: when a mask of dropout cannot number the weights, or, from the C++ kernel,
            when shapes or types do not fit.
    """
    if choose(backend, query) is not Backend.native:
        visible = None if mask is None else mask[:, None, None, :]
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, is_causal=causal, dropout_p=dropout
        )
    _check(query, key, value, mask)
    if dropout and query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2] >= 2**32:
        raise ValueError(
            f"attention of {tuple(query.shape)} to {key.shape[2]} has more weights than a mask "
            f"of dropout can number (2^32); make the batch smaller"
        )
    mixed: Tensor = _kernel(query, key, value, mask, causal, dropout, seed)[0]
    return mixed.transpose(1, 2)


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    """C++ takes addresses: what does not fit would be read beyond its end."""
    batch, heads, _, size = query.shape
    sources = (batch, heads, key.shape[2], size)
    if not (key.shape == value.shape == sources and query.dtype is key.dtype is value.dtype):
        raise ValueError(
            f"attention: key {tuple(key.shape)} {key.dtype} and value {tuple(value.shape)} "
            f"{value.dtype} must be {sources} {query.dtype} for query {tuple(query.shape)}"
        )
    if mask is not None and (mask.shape != (batch, sources[2]) or mask.dtype is not torch.bool):
        raise ValueError(
            f"attention: the mask is {tuple(mask.shape)} {mask.dtype} "
            f"but must be {(batch, sources[2])} torch.bool"
        )


def _run(
    name: str,
    inputs: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    log_sums: Tensor,
    options: tuple[bool, float, int],
    *,
    out: Tensor | None = None,
    grad: Tensor | None = None,
    grads: tuple[Tensor, ...] = (),
) -> None:
    """Describe tensors to a kernel and run it on torch's number of threads."""
    query, key, _ = inputs
    batch, heads, targets, size = query.shape
    causal, dropout, seed = options
    slope = query if grad is None else grad
    call = _CALL.pack(
        *(each.data_ptr() for each in inputs),
        slope.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        0 if out is None else out.data_ptr(),
        *((each.data_ptr() for each in grads) if grads else (0, 0, 0)),
        log_sums.data_ptr(),
        *(each.stride(axis) for each in (*inputs, slope) for axis in (0, 2, 1)),
        batch,
        heads,
        targets,
        key.shape[2],
        size,
        causal,
        seed,
        torch.get_num_threads(),
        KERNEL_TYPES[query.dtype],
        dropout,
    )
    if getattr(load_library(), name)(call):
        raise MemoryError(f"{name}: not enough memory for {tuple(query.shape)}")


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """The mixed values (B, T, H, D), and log2 of the sums of the softmax (B, H, T)."""
    batch, heads, targets, size = query.shape
    out = query.new_empty(batch, targets, heads, size)
    log_sums = query.new_empty(
        batch, heads, targets, dtype=torch.promote_types(query.dtype, torch.float32)
    )
    inputs = rows(query), rows(key), rows(value)
    mask = None if mask is None else mask.contiguous()
    _run("lcmt_attention", inputs, mask, log_sums, (causal, dropout, seed), out=out)
    return out, log_sums


def _attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    log_sums: Tensor,
    causal: bool,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, in memory as (B, T or S, H, D)."""
    inputs = rows(query), rows(key), rows(value)
    grads = tuple(
        torch.empty_like(each.transpose(1, 2), memory_format=torch.contiguous_format)
        for each in inputs
    )
    mask = None if mask is None else mask.contiguous()
    _run(
        "lcmt_attention_backward",
        inputs,
        mask,
        log_sums,
        (causal, dropout, seed),
        grad=rows(grad.transpose(1, 2)),
        grads=grads,
    )
    first, second, third = (each.transpose(1, 2) for each in grads)
    return first, second, third


_kernel = register_op(
    "attention",
    "(Tensor query, Tensor key, Tensor value, Tensor? mask, bool causal, float dropout, "
    "SymInt seed) -> (Tensor, Tensor)",
    cpu=_attention,
    cuda=None,
    shapes=lambda query, *_: (
        query.new_empty(query.transpose(1, 2).shape),
        query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32)),
    ),
)
_backward_kernel = register_op(
    "attention_backward",
    "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor log_sums, "
    "bool causal, float dropout, SymInt seed) -> (Tensor, Tensor, Tensor)",
    cpu=_attention_backward,
    cuda=None,
    shapes=lambda grad, query, key, value, *_: tuple(
        each.new_empty(each.transpose(1, 2).shape).transpose(1, 2) for each in (query, key, value)
    ),
)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, mask, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, mask, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    refuse_second_derivative("attention")
    return *_backward_kernel(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None


_kernel.differentiate(_remember, _differentiate)
