"""Products with weights in training on CPUs: oneDNN's, bias and ReLU in the same pass."""

import ctypes
import struct
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
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
# With tiles (AMX) that takes 1 to 20 ms, many times what the product takes: rows in few sizes.
PIECES = *range(4096, 0, -512), 256
_CALL = struct.Struct("=4Q4q")  # `Call` of csrc/linear.cpp
_ROW_MAJOR, _AS_IT_IS, _TRANSPOSED = 101, 111, 112  # of the C interface to BLAS


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weight^T + bias`, as `F.linear`; autocast counts.

    Torch has MKL make products in float32, up to a sixth slower on the CPU of docs/speed.md. In
    bfloat16 it calls oneDNN too, but for the product alone; the same bits take longer so. CPUs with
    tiles are Intel's, where MKL is as fast in float32 and makes these; for bfloat16 see `matmul`
    and `add_matmul_`: there the gradient of a float32 weight is never rounded to bfloat16.

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


def matmul(rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """`rows matrix + bias` without a gradient.

    Of many rows in bfloat16, where oneDNN multiplies by tiles, in pieces of `PIECES`; the last one
    takes some rows of that before it once more, so that no other size occurs.

    Args:
        rows: (N, I) float.
        matrix: (I, O), of the same type.
        bias: (O,).

    Returns:
        (N, O).
    """
    if len(rows) < PIECES[-1] or not _by_tiles(rows):
        return rows @ matrix if bias is None else torch.addmm(bias, rows, matrix)
    rows, y = rows.contiguous(), rows.new_empty(len(rows), matrix.shape[1])
    for piece in _pieces(len(rows)):
        if bias is None:
            torch.mm(rows[piece], matrix, out=y[piece])
        else:
            torch.addmm(bias, rows[piece], matrix, out=y[piece])
    return y


def add_matmul_(total: Tensor, grad: Tensor, rows: Tensor) -> Tensor:
    """Add `grad^T rows`, the gradient of a weight, to `total` in place; without a gradient.

    oneDNN's kernels for sums over ever other numbers of rows take longest of all, so MKL makes
    these where there are tiles, and adds them in float32.

    Args:
        total: (O, I) float.
        grad: (N, O).
        rows: (N, I), of the same type.

    Returns:
        `total`.
    """
    gemm = _gemm_of_mkl() if total.dtype is torch.float32 and _by_tiles(rows) else None
    if gemm is None or not total.is_contiguous():
        return total.add_(grad.T @ rows)
    grad, rows = grad.contiguous(), rows.contiguous()
    (terms, outputs), inputs = grad.shape, rows.shape[1]
    gemm(
        *(_ROW_MAJOR, _TRANSPOSED, _AS_IT_IS, outputs, inputs, terms),
        *(1.0, grad.data_ptr(), outputs, rows.data_ptr(), inputs),
        *(1.0, total.data_ptr(), inputs),
    )
    return total


def _type_of_product(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """The type in which it is made here, or None where it is torch's."""
    # First, so that no shape is asked for: inductor has products of its own.
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or x.device.type != "cpu":
        return None
    if x.numel() < _ROWS * x.shape[-1]:
        return None
    types = {x.dtype, weight.dtype}
    if torch.is_autocast_enabled("cpu") and torch.float64 not in types:
        types = {torch.get_autocast_dtype("cpu")}
    if len(types) != 1 or not types <= _types_of_onednn():
        return None
    dtype = types.pop()
    large = weight.numel() >= _WEIGHTS or (dtype is torch.bfloat16 and _has_tiles())
    return dtype if large else None


@cache
def _types_of_onednn() -> frozenset[torch.dtype]:
    """Types in which oneDNN makes products here; narrow ones take certain instructions."""
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    narrow = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return frozenset({torch.float32, *([torch.bfloat16] if narrow else [])})


@cache
def _has_tiles() -> bool:
    return torch.cpu._is_amx_tile_supported()


def _by_tiles(rows: Tensor) -> bool:
    return rows.dtype is torch.bfloat16 and rows.device.type == "cpu" and _has_tiles()


@cache
def _gemm_of_mkl() -> Any:
    """MKL's product of bfloat16 in float32, of the library that torch brings; None without it."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not sys.platform.startswith("linux") or not library.exists():
        return None
    gemm = getattr(ctypes.CDLL(str(library)), "cblas_gemm_bf16bf16f32", None)
    if gemm is not None:
        size, number, place = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
        gemm.argtypes = [*[size] * 6, number, *[place, size] * 2, number, place, size]
        gemm.restype = None
    return gemm


def _pieces(rows: int) -> Iterator[slice]:
    """Which together are all rows, at least `PIECES[-1]` of them, in pieces of those sizes."""
    start = 0
    for size in PIECES:
        while rows - start >= size:
            yield slice(start, start + size)
            start += size
    if start < rows:
        yield slice(rows - PIECES[-1], rows)


def _train(
    x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, relu: Backend | None
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    y: Tensor = _Linear.apply(rows, weight, bias, relu)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    """The gradient of the weights sums over rows, where MKL is no slower."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, relu: Backend | None
    ) -> Tensor:
        narrow = weight.to(rows.dtype)
        y = _product(rows, narrow, None if bias is None else bias.to(rows.dtype), relu is not None)
        ctx.save_for_backward(rows, narrow, y if relu else None)
        ctx.relu, ctx.dtype = relu, weight.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, y = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad, sums = _relu_backward(grad, y, ctx.relu) if ctx.relu else (grad, None)
        return (
            _product(grad, weight.T, None, relu=False) if wanted[0] else None,
            _weight_gradient(grad, rows, ctx.dtype) if wanted[1] else None,
            (grad.sum(0) if sums is None else sums).to(ctx.dtype) if wanted[2] else None,
            None,
        )


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    if not _has_tiles():
        then = "relu" if relu else "none"
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, then, [], "")
    y = matmul(rows, weight.T, bias)
    return y.relu_() if relu else y


def _weight_gradient(grad: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype is rows.dtype or not _by_tiles(rows):
        return (grad.T @ rows).to(dtype)
    return add_matmul_(rows.new_zeros(grad.shape[1], rows.shape[1], dtype=dtype), grad, rows)


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
    return masked, sums
