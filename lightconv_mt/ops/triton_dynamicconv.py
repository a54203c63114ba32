"""DynamicConv on GPUs: how a call is cut into programs, and the kernels launched."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightconv_mt.ops.triton_dynamicconv_kernels import (
    dynamicconv_backward_kernel,
    dynamicconv_forward_kernel,
    dynamicconv_normalizer_kernel,
)
from lightconv_mt.ops.triton_table import (
    Launch,
    architecture_of,
    ceil_div,
    choose_launch,
    power_of_two,
)
from lightconv_mt.ops.triton_tiles import (
    channels_together,
    check_types,
    empty,
    launch,
    random_words,
    threads_of_row,
)

WIDEST_BLOCK = 64
# Tile and warps of the kernel that sums exponentials.
NORMALIZER_ELEMENTS = 2048
NORMALIZER_WARPS = 4


@dataclass(frozen=True)
class Plan:
    """How one call is cut into programs."""

    heads: int
    share: int
    width: int
    tiles: int
    launch: Launch

    @classmethod
    def of(cls, direction: str, x: Tensor, weight: Tensor) -> "Plan":
        """Plan `forward` or `backward` for x (B, T, C) and weight (B, T, H, K)."""
        (batch, time, channels), (heads, width) = x.shape, weight.shape[2:]
        share = channels // heads
        launch = choose_launch(
            f"dynamicconv_{direction}",
            width=width,
            cols=min(power_of_two(share), WIDEST_BLOCK),
            itemsize=x.element_size(),
            positions=batch * time,
            architecture=architecture_of(x.device),
        )
        tiles = ceil_div(batch * ceil_div(time, launch.steps), launch.runs)
        return cls(heads, share, width, tiles, launch)

    @property
    def parts(self) -> int:
        """Blocks of channels of one head."""
        return ceil_div(self.share, self.launch.cols)

    def constants(self, *, normalize: bool, dropout: bool) -> dict[str, Any]:
        """Compile-time arguments that the forward and backward kernels share."""
        return {
            **{"HEADS": self.heads, "SHARE": self.share, "WIDTH": self.width},
            **{"NORMALIZE": normalize, "DROPOUT": dropout, "PARTS": self.parts},
            **self.launch.constants,
        }

    def forward_constants(self, x: Tensor) -> dict[str, Any]:
        """Those of the forward kernel alone."""
        return {"CHUNK": threads_of_row(self.launch.cols, x)}

    def backward_constants(self) -> dict[str, Any]:
        """Those of the backward kernel alone."""
        return {"WIDE": power_of_two(self.width)}

    def normalizer_constants(self) -> dict[str, Any]:
        """Compile-time arguments of the kernel that sums exponentials."""
        wide = power_of_two(self.width)
        return {"WIDTH": self.width, "WIDE": wide, "LINES": NORMALIZER_ELEMENTS // wide}


def dynamicconv_triton(
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Same as `dynamicconv_reference`, without gradients; any types but float64."""
    check_types(x, weight)
    x, weight = channels_together(x), weight.contiguous()
    y = empty(x.shape, dtype=x.dtype, device=x.device)
    batch, time, _ = x.shape
    plan = Plan.of("forward", x, weight)
    launch(
        *(dynamicconv_forward_kernel, plan.tiles * plan.heads, x),
        *(x, weight, y, batch, time, *x.stride()[:2], padding_left),
        *random_words(dropout, seed),
        **plan.constants(normalize=normalize, dropout=dropout > 0.0),
        **plan.forward_constants(x),
        warps=plan.launch.warps,
    )
    return y


def dynamicconv_triton_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Gradients of `dynamicconv_triton` for x and weight, given that of y, in their dtypes."""
    check_types(grad_y, x, weight)
    grad_y, x, weight = channels_together(grad_y), channels_together(x), weight.contiguous()
    batch, time, _ = x.shape
    grad_x = empty(x.shape, dtype=x.dtype, device=x.device)
    grad_weight = empty(weight.shape, dtype=weight.dtype, device=weight.device)
    normalizer = empty(weight.shape[:3], dtype=torch.float32, device=x.device)
    plan = Plan.of("backward", x, weight)
    if normalize:
        constants = plan.normalizer_constants()
        launch(
            *(dynamicconv_normalizer_kernel, ceil_div(normalizer.numel(), constants["LINES"]), x),
            *(weight, normalizer, normalizer.numel()),
            **{**constants, "warps": NORMALIZER_WARPS},
        )
    launch(
        *(dynamicconv_backward_kernel, plan.tiles * plan.heads, x),
        *(grad_y, x, weight, normalizer, grad_x, grad_weight, batch, time),
        *(*grad_y.stride()[:2], *x.stride()[:2], padding_left),
        *random_words(dropout, seed),
        **plan.constants(normalize=normalize, dropout=dropout > 0.0),
        **plan.backward_constants(),
        warps=plan.launch.warps,
    )
    return grad_x, grad_weight
