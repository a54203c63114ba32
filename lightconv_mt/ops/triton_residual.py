"""Residual connection with dropout on GPUs, each element read once and written once.

Which elements are dropped is `ops.masks.keep_mask`, computed anew by the backward pass: no mask is
stored.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightconv_mt.ops.triton_table import architecture_of, ceil_div, choose_block
from lightconv_mt.ops.triton_tiles import check_types, empty, keep, launch, random_words

# Values that change from call to call must not make a new kernel; `count` may, as only its
# divisibility by 16 counts, which wide loads need.
VARYING = ["seed_low", "seed_high", "threshold", "scale"]


@triton.jit(do_not_specialize=VARYING)
def residual_forward_kernel(
    x_ptr,
    y_ptr,
    joined_ptr,
    count,
    seed_low,
    seed_high,
    threshold,
    scale,
    BLOCK: tl.constexpr,
):
    """BLOCK elements of `x + dropout(y)`."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < count
    x = tl.load(x_ptr + element, mask=inside).to(tl.float32)
    y = tl.load(y_ptr + element, mask=inside).to(tl.float32)
    factor = keep(element, (seed_low, seed_high, threshold, scale))
    tl.store(joined_ptr + element, x + y * factor, mask=inside)


@triton.jit(do_not_specialize=VARYING)
def residual_backward_kernel(
    grad_ptr,
    grad_y_ptr,
    count,
    seed_low,
    seed_high,
    threshold,
    scale,
    BLOCK: tl.constexpr,
):
    """BLOCK elements of the gradient of y."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < count
    gradient = tl.load(grad_ptr + element, mask=inside).to(tl.float32)
    factor = keep(element, (seed_low, seed_high, threshold, scale))
    tl.store(grad_y_ptr + element, gradient * factor, mask=inside)


def residual_dropout_triton(x: Tensor, y: Tensor, *, dropout: float, seed: int) -> Tensor:
    """`x + dropout(y)`, without gradients.

    Args:
        x: float but not float64.
        y: x's shape, of any such type.
        dropout: probability in [0, 1).
        seed: of the mask, 64 bits.

    Returns:
        x's shape in the wider of both types.
    """
    check_types(x, y)
    x, y = x.contiguous(), y.contiguous()
    joined = empty(x.shape, dtype=torch.promote_types(x.dtype, y.dtype), device=x.device)
    _launch(residual_forward_kernel, "residual_forward", x, y, joined, dropout=dropout, seed=seed)
    return joined


def residual_dropout_triton_backward(
    gradient: Tensor, *, dropout: float, seed: int, dtype: torch.dtype
) -> Tensor:
    """Gradient of y in `dtype`, given that of the result; that of x is the result's itself."""
    check_types(gradient)
    gradient = gradient.contiguous()
    grad_y = empty(gradient.shape, dtype=dtype, device=gradient.device)
    _launch(
        *(residual_backward_kernel, "residual_backward", gradient, grad_y),
        dropout=dropout,
        seed=seed,
    )
    return grad_y


def _launch(kernel: object, name: str, *tensors: Tensor, dropout: float, seed: int) -> None:
    count = tensors[0].numel()
    block = choose_block(
        name,
        elements=count,
        architecture=architecture_of(tensors[0].device),
    )
    launch(
        *(kernel, ceil_div(count, block.elements), tensors[0]),
        *(*tensors, count, *random_words(dropout, seed)),
        BLOCK=block.elements,
        warps=block.warps,
    )
