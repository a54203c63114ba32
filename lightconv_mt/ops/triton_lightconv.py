"""LightConv on GPUs: how a call is cut into programs, and the kernels launched."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightconv_mt.ops.triton_lightconv_kernels import (
    lightconv_backward_kernel,
    lightconv_forward_kernel,
    lightconv_weight_kernel,
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
)

# Heads with fewer channels share a program.
NARROWEST_HEAD = 16
WIDEST_BLOCK = 64
# Tile and warps of the kernel that adds the shares.
REDUCED_ELEMENTS = 4096
WEIGHT_WARPS = 8


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
        """Plan `forward` or `backward` for x (B, T, C) and weight (H, K)."""
        (batch, time, channels), (heads, width) = x.shape, weight.shape
        share = channels // heads
        launch = choose_launch(
            f"lightconv_{direction}",
            width=width,
            cols=min(power_of_two(share if share >= NARROWEST_HEAD else channels), WIDEST_BLOCK),
            itemsize=x.element_size(),
            positions=batch * time,
            architecture=architecture_of(x.device),
        )
        tiles = ceil_div(batch * ceil_div(time, launch.steps), launch.runs)
        return cls(heads, share, width, tiles, launch)

    @property
    def mixed(self) -> bool:
        """Whether a program's columns belong to several heads."""
        return self.share < NARROWEST_HEAD

    @property
    def blocks(self) -> int:
        """Programs side by side over all channels."""
        if self.mixed:
            return ceil_div(self.heads * self.share, self.launch.cols)
        return self.heads * ceil_div(self.share, self.launch.cols)

    @property
    def columns(self) -> int:
        """Columns of the scratch: channels when heads are mixed, else blocks."""
        return self.heads * self.share if self.mixed else self.blocks

    @property
    def programs(self) -> int:
        """Size of the grid."""
        return self.tiles * self.blocks

    def constants(self, *, normalize: bool, dropout: bool) -> dict[str, Any]:
        """Compile-time arguments of the forward and backward kernels."""
        return {
            **{"HEADS": self.heads, "SHARE": self.share, "WIDTH": self.width},
            **{"WIDE": power_of_two(self.width), "NORMALIZE": normalize, "DROPOUT": dropout},
            **{"MIXED": self.mixed, "BLOCKS": self.blocks},
            **self.launch.constants,
        }

    def weight_constants(self, *, normalize: bool, dropout: bool) -> dict[str, Any]:
        """Compile-time arguments of the kernel that adds the shares."""
        wide = power_of_two(self.width)
        return {
            **{"WIDTH": self.width, "WIDE": wide, "NORMALIZE": normalize, "DROPOUT": dropout},
            **{"COLUMNS": self.columns, "PER_HEAD": self.columns // self.heads},
            "LINES": REDUCED_ELEMENTS // wide,
        }


def lightconv_triton(
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Same as `lightconv_reference`, without gradients; weight (H, K) of any type but float64."""
    check_types(x, weight)
    x, weight = channels_together(x), weight.contiguous()
    y = empty(x.shape, dtype=x.dtype, device=x.device)
    batch, time, _ = x.shape
    plan = Plan.of("forward", x, weight)
    launch(
        *(lightconv_forward_kernel, plan.programs, x),
        *(x, weight, y, batch, time, *x.stride()[:2], padding_left),
        *random_words(dropout, seed),
        **plan.constants(normalize=normalize, dropout=dropout > 0.0),
        warps=plan.launch.warps,
    )
    return y


def lightconv_triton_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Gradients of `lightconv_triton` for x and weight, given that of y, in their dtypes."""
    check_types(grad_y, x, weight)
    grad_y, x, weight = channels_together(grad_y), channels_together(x), weight.contiguous()
    batch, time, _ = x.shape
    grad_x = empty(x.shape, dtype=x.dtype, device=x.device)
    grad_weight = empty(weight.shape, dtype=weight.dtype, device=weight.device)
    plan = Plan.of("backward", x, weight)
    scratch = (plan.tiles, plan.columns, plan.width)
    partial = empty(scratch, dtype=torch.float32, device=x.device)
    random = random_words(dropout, seed)
    launch(
        *(lightconv_backward_kernel, plan.programs, x),
        *(grad_y, x, weight, grad_x, partial, batch, time),
        *(*grad_y.stride()[:2], *x.stride()[:2], padding_left, *random),
        **plan.constants(normalize=normalize, dropout=dropout > 0.0),
        warps=plan.launch.warps,
    )
    launch(
        *(lightconv_weight_kernel, plan.heads, x),
        *(partial, weight, grad_weight, plan.tiles, *random),
        **plan.weight_constants(normalize=normalize, dropout=dropout > 0.0),
        warps=WEIGHT_WARPS,
    )
    return grad_x, grad_weight
