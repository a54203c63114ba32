"""Products with weights in training on CPUs: oneDNN's, bias and ReLU in the same pass."""

import struct
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightconv_mt.ops.dispatch import Backend, choose
from lightconv_mt.ops.library import enough_memory, load_library
from lightconv_mt.ops.native import KERNEL_TYPES

# oneDNN writes a kernel for every new shape, in about a millisecond, and MKL does not.
_WEIGHTS, _ROWS = 2**16, 256
_CALL = struct.Struct("=4Q4q")  # `Call` of csrc/linear.cpp


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weight^T + bias`, as `F.linear`; autocast counts.

    Torch has MKL make products in float32, up to a sixth slower on the CPU of docs/speed.md. In
    bfloat16 it calls oneDNN too, but for the product alone; the same bits take longer so.

    Args:
        x: (..., I) float.
        weight: (O, I).
        bias: (O,).

    Returns:
        (..., O).
    """
    dtype = _type_of_product(x, weight)
    if dtype is None:
        return F.linear(x, weight, bias)
    return _train(x, weight, bias, dtype, None)


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor, *, backend: Backend) -> Tensor:
    """`max(x weight^T + bias, 0)`; arguments as `linear`.

    With the backend `native` one pass of C++ masks the gradient and sums it for the bias.
    """
    dtype = _type_of_product(x, weight)
    if dtype is not None:
        return _train(x, weight, bias, dtype, choose(backend, x))
    # Of rows, since the gradient of what is changed in place and a view takes three copies.
    y = F.linear(x.reshape(-1, x.shape[-1]), weight, bias).relu_()
    return y.view(*x.shape[:-1], len(weight))


def _type_of_product(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """The type in which it is made here, or None where it is torch's."""
    # First, so that no shape is asked for: inductor has products of its own.
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or x.device.type != "cpu":
        return None
    if x.numel() < _ROWS * x.shape[-1] or weight.numel() < _WEIGHTS:
        return None
    types = {x.dtype, weight.dtype}
    if torch.is_autocast_enabled("cpu") and torch.float64 not in types:
        types = {torch.get_autocast_dtype("cpu")}
    return types.pop() if len(types) == 1 and types <= _types_of_onednn() else None


@cache
def _types_of_onednn() -> frozenset[torch.dtype]:
    """Types in which oneDNN makes products here; narrow ones take certain instructions."""
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    narrow = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return frozenset({torch.float32, *([torch.bfloat16] if narrow else [])})


def _train(
    x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, relu: Backend | None
) -> Tensor:
    rows, bias = x.reshape(-1, x.shape[-1]).to(dtype), None if bias is None else bias.to(dtype)
    y: Tensor = _Linear.apply(rows, weight.to(dtype), bias, relu)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    """The gradient of the weights sums over rows, where MKL is no slower."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, relu: Backend | None
    ) -> Tensor:
        y = _product(rows, weight, bias, "relu" if relu else "none")
        ctx.save_for_backward(rows, weight, y if relu else None)
        ctx.relu = relu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, y = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad, sums = _relu_backward(grad, y, ctx.relu) if ctx.relu else (grad, None)
        return (
            _product(grad, weight.T, None, "none") if wanted[0] else None,
            grad.T @ rows if wanted[1] else None,
            (grad.sum(0) if sums is None else sums) if wanted[2] else None,
            None,
        )


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, then: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, then, [], "")


def _relu_backward(grad: Tensor, y: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
    """`grad` where y is above 0, and the sums of that over rows; y (rows, O)."""
    if backend is not Backend.native:
        masked = torch.ops.aten.threshold_backward(grad, y, 0)
        return masked, masked.sum(0)
    grad, masked = grad.contiguous(), torch.empty_like(y)
    wide = torch.promote_types(y.dtype, torch.float32)
    sums = torch.empty(y.shape[1], dtype=wide)
    call = _CALL.pack(
        *(each.data_ptr() for each in (grad, y, masked, sums)),
        *y.shape,
        torch.get_num_threads(),
        KERNEL_TYPES[y.dtype],
    )
    enough_memory(load_library().lcmt_relu_backward(call), "lcmt_relu_backward", y.shape)
    return masked, sums.to(y.dtype)
