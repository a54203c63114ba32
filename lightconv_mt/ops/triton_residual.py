"""Residual connection with dropout on GPUs, each element read once and written once.

Which elements are dropped is `ops.masks.keep_mask`, computed anew by the backward pass, which is
the same kernel without the residual: no mask is stored.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightconv_mt.ops.triton_table import architecture_of, ceil_div, choose_block
from lightconv_mt.ops.triton_tiles import check_types, empty, keep, launch, random_words

# Values that change from call to call must not make a new kernel. The number of elements may, as
# only its divisibility by 16 counts, which wide loads need.
VARYING = ["seed_low", "seed_high", "threshold", "scale"]


@triton.jit(do_not_specialize=VARYING)
def residual_kernel(
    x_ptr,
    y_ptr,
    out_ptr,
    count,
    seed_low,
    seed_high,
    threshold,
    scale,
    JOIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK elements of `x + dropout(y)`, or of `dropout(y)`."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < count
    out = tl.load(y_ptr + element, mask=inside).to(tl.float32)
    out *= keep(element, (seed_low, seed_high, threshold, scale))
    if JOIN:
        out += tl.load(x_ptr + element, mask=inside).to(tl.float32)
    tl.store(out_ptr + element, out, mask=inside)


def residual_triton(
    x: Tensor | None, y: Tensor, dropout: float, seed: int, dtype: torch.dtype
) -> Tensor:
    """`x + dropout(y)`, without gradients: that of x is the result's, that of y its dropout.

    Args:
        x: y's shape, float but not float64; None for `dropout(y)` alone.
        y: fewer than 2**32 elements, of any such type.
        dropout: probability in [0, 1).
        seed: of the mask, 64 bits.
        dtype: of the result.

    Returns:
        y's shape.
    """
    check_types(*(tensor for tensor in (x, y) if tensor is not None))
    y = y.contiguous()
    out = empty(y.shape, dtype=dtype, device=y.device)
    count = y.numel()
    block = choose_block("residual", elements=count, architecture=architecture_of(y.device))
    launch(
        *(residual_kernel, ceil_div(count, block.elements), y),
        *(y if x is None else x.contiguous(), y, out, count, *random_words(dropout, seed)),
        **{"JOIN": x is not None, "BLOCK": block.elements},
        warps=block.warps,
    )
    return out
