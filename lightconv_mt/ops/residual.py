"""A sublayer's way back into the residual stream: dropout, sum and layer norm in one pass."""

import struct
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightconv_mt.ops.dispatch import COMPILED, Backend, choose
from lightconv_mt.ops.library import enough_memory, load_library
from lightconv_mt.ops.masks import keep_mask
from lightconv_mt.ops.native import KERNEL_TYPES
from lightconv_mt.ops.register import refuse_second_derivative, register_op, triton_function

# `Call` of csrc/residual.cpp, and its pointers.
_CALL = struct.Struct("=12Q7q2d")
_FIELDS = (
    *("x", "y", "out", "joined", "statistics", "weight", "bias"),
    *("grad", "grad_x", "grad_y", "grad_weight", "grad_bias"),
)
_ELEMENTS = 2**32  # that a mask can number


def draw_seed() -> int:
    """A seed of a dropout mask from torch's generator, so that a seeded step repeats."""
    return int(torch.randint(2**62, ()))


def dropout(x: Tensor, probability: float, *, training: bool, backend: Backend) -> Tensor:
    """Zero elements with the given probability and rescale the others by 1 / (1 - p).

    Args:
        x: any shape, float.
        probability: 0 <= p < 1.
        training: without it x is returned as it is.
        backend: which implementation; all drop the same elements, see `keep_mask`.

    Returns:
        x's shape and dtype.
    """
    if not training or probability == 0.0:
        return x
    seed = draw_seed()
    if choose(backend, x) in COMPILED:
        return _residual_kernel(None, x, probability, seed, x.dtype)
    return _dropped(x, probability, seed)


def residual(x: Tensor, y: Tensor, *, dropout: float, seed: int, backend: Backend) -> Tensor:
    """`x + dropout(y)`.

    Args:
        x: (B, T, C) float.
        y: (B, T, C) float, in x's dtype or one whose sums are taken in the same.
        dropout: 0 <= p < 1.
        seed: of the mask, see `keep_mask`.
        backend: which implementation.

    Returns:
        (B, T, C) in x's dtype.
    """
    if choose(backend, x) in COMPILED:
        return _residual_kernel(x, y, dropout, seed, x.dtype)
    return x + _dropped(y.to(x.dtype), dropout, seed)


def residual_norm(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    dropout: float,
    seed: int,
    backend: Backend,
) -> Tensor:
    """`layer_norm(x + dropout(y))`; weight and bias (C,), the rest as `residual`.

    On GPUs the norm is torch's.
    """
    if choose(backend, x) is Backend.native:
        return _norm_kernel(x, y, weight, bias, dropout, seed, eps)[0]
    joined = residual(x, y, dropout=dropout, seed=seed, backend=backend)
    return F.layer_norm(joined, weight.shape, weight, bias, eps)


def _dropped(y: Tensor, probability: float, seed: int) -> Tensor:
    if probability == 0.0:
        return y
    keep = keep_mask(y.shape, dropout=probability, seed=seed, device=y.device)
    return y * keep.to(y.dtype) * (1.0 / (1.0 - probability))


def _run(
    name: str,
    shape: torch.Size,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    *,
    dropout: float,
    seed: int,
    eps: float,
    **tensors: Tensor,
) -> None:
    """Describe contiguous tensors, named as in `Call`, and run a kernel on torch's threads.

    Args:
        name: of the kernel.
        shape: (..., C) of all but the vectors.
        dtypes: of x, y and out.
        dropout: probability.
        seed: of the mask.
        eps: of the norm.
        tensors: by field.
    """
    if shape.numel() >= _ELEMENTS:
        raise ValueError(f"{tuple(shape)} has more elements than a mask can number (2^32)")
    channels = shape[-1] if shape else 1
    call = _CALL.pack(
        *(tensors[field].data_ptr() if field in tensors else 0 for field in _FIELDS),
        shape.numel() // max(channels, 1),
        channels,
        seed,
        torch.get_num_threads(),
        *(KERNEL_TYPES[dtype] for dtype in dtypes),
        dropout,
        eps,
    )
    if enough_memory(getattr(load_library(), name)(call), name, shape):
        raise TypeError(f"{name} cannot join {' and '.join(map(str, dtypes[:2]))}")


def _residual(x: Tensor | None, y: Tensor, dropout: float, seed: int, dtype: torch.dtype) -> Tensor:
    y = y.contiguous()
    out = torch.empty_like(y, dtype=dtype)
    stream = {} if x is None else {"x": x.contiguous()}
    dtypes = dtype if x is None else x.dtype, y.dtype, dtype
    _run(
        "lcmt_residual",
        y.shape,
        dtypes,
        dropout=dropout,
        seed=seed,
        y=y,
        out=out,
        eps=0.0,
        **stream,
    )
    return out


def _residual_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, dropout: float, seed: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, what the norm read, and its mean and 1 / deviation a row."""
    x, y, sums = x.contiguous(), y.contiguous(), torch.promote_types(x.dtype, torch.float32)
    out, joined = torch.empty_like(x), torch.empty_like(x, dtype=sums)
    statistics = torch.empty(*x.shape[:-1], 2, dtype=sums)
    _run(
        "lcmt_residual_norm",
        x.shape,
        (x.dtype, y.dtype, x.dtype),
        dropout=dropout,
        seed=seed,
        eps=eps,
        x=x,
        y=y,
        out=out,
        joined=joined,
        statistics=statistics,
        weight=weight.to(sums).contiguous(),
        bias=bias.to(sums).contiguous(),
    )
    return out, joined, statistics


def _residual_norm_backward(
    grad: Tensor,
    joined: Tensor,
    statistics: Tensor,
    weight: Tensor,
    dropout: float,
    seed: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients for x, y (whose dtype is given), weight and bias."""
    grad, wide = grad.contiguous(), weight.to(joined.dtype).contiguous()
    grad_x, grad_y = torch.empty_like(grad), torch.empty_like(grad, dtype=dtype)
    grad_weight, grad_bias = torch.empty_like(wide), torch.empty_like(wide)
    _run(
        "lcmt_residual_norm_backward",
        grad.shape,
        (grad.dtype, dtype, grad.dtype),
        dropout=dropout,
        seed=seed,
        eps=0.0,
        grad=grad,
        joined=joined,
        statistics=statistics,
        weight=wide,
        grad_x=grad_x,
        grad_y=grad_y,
        grad_weight=grad_weight,
        grad_bias=grad_bias,
    )
    return grad_x, grad_y, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


_residual_kernel = register_op(
    "residual",
    "(Tensor? x, Tensor y, float dropout, SymInt seed, ScalarType dtype) -> Tensor",
    cpu=_residual,
    cuda=triton_function("residual", "residual_triton"),
    shapes=lambda x, y, dropout, seed, dtype: y.new_empty(y.shape, dtype=dtype),
)
_norm_kernel = register_op(
    "residual_norm",
    "(Tensor x, Tensor y, Tensor weight, Tensor bias, float dropout, SymInt seed, float eps) "
    "-> (Tensor, Tensor, Tensor)",
    cpu=_residual_norm,
    cuda=None,
    shapes=lambda x, *_: (
        x.new_empty(x.shape),
        x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, torch.float32)),
        x.new_empty((*x.shape[:-1], 2), dtype=torch.promote_types(x.dtype, torch.float32)),
    ),
)
_norm_backward_kernel = register_op(
    "residual_norm_backward",
    "(Tensor grad, Tensor joined, Tensor statistics, Tensor weight, float dropout, SymInt seed, "
    "ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_residual_norm_backward,
    cuda=None,
    shapes=lambda grad, joined, statistics, weight, dropout, seed, dtype: (
        grad.new_empty(grad.shape),
        grad.new_empty(grad.shape, dtype=dtype),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape),
    ),
)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, ctx.dropout, ctx.seed, _ = inputs
    ctx.dtypes = None if x is None else x.dtype, y.dtype


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x_dtype, y_dtype = ctx.dtypes
    grad_x = None if x_dtype is None else grad.to(x_dtype)
    return grad_x, _residual_kernel(None, grad, ctx.dropout, ctx.seed, y_dtype), None, None, None


def _remember_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, y, weight, _, ctx.dropout, ctx.seed, _ = inputs
    ctx.dtype = y.dtype
    ctx.save_for_backward(*output[1:], weight)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate_norm(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    refuse_second_derivative("residual_norm")
    grads = _norm_backward_kernel(grad, *ctx.saved_tensors, ctx.dropout, ctx.seed, ctx.dtype)
    return *grads, None, None, None


_residual_kernel.differentiate(_remember, _differentiate)
_norm_kernel.differentiate(_remember_norm, _differentiate_norm)
