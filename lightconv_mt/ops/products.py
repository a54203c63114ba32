"""Products with weights in training: in float32 oneDNN's where they are large, else torch's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# oneDNN writes a kernel for every new shape, in about a millisecond: smaller products take less.
_WEIGHTS, _ROWS = 2**16, 256


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weight^T + bias`, as `F.linear`; autocast counts.

    Torch calls oneDNN for narrower types alone and leaves float32 to MKL, which is a sixth slower
    on the CPU of docs/speed.md.

    Args:
        x: (..., I) float.
        weight: (O, I).
        bias: (O,).

    Returns:
        (..., O).
    """
    if not torch.is_grad_enabled() or not _is_large(x, weight):
        return F.linear(x, weight, bias)
    y: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)  # type: ignore[no-untyped-call]
    return y.unflatten(0, x.shape[:-1])


def _is_large(x: Tensor, weight: Tensor) -> bool:
    # First, so that no shape is asked for: inductor has products of its own.
    return not torch.compiler.is_compiling() and (
        x.device.type == "cpu"
        and x.dtype is weight.dtype is torch.float32
        and x.numel() >= _ROWS * x.shape[-1]
        and weight.numel() >= _WEIGHTS
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


class _Linear(torch.autograd.Function):
    """The gradient of the weights sums over rows, where MKL is no slower."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            _product(grad, weight.T, None) if wanted[0] else None,
            grad.T @ rows if wanted[1] else None,
            grad.sum(0) if wanted[2] else None,
        )


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
