"""What the C++ encoder and decoder make of a linear layer in low precision, as plain formulas."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightconv_mt.mixers.linear import ReluLinear

LARGEST = 127  # of int8


def put(module: nn.Linear, product: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Have a layer multiply its inputs and weights by `product`; bias and ReLU stay."""

    def forward(x: Tensor) -> Tensor:
        y = product(x, module.weight) + (0 if module.bias is None else module.bias)
        return y.relu() if isinstance(module, ReluLinear) else y

    module.forward = forward  # type: ignore[method-assign]


def bf16_product(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x.bfloat16().float(), weight.bfloat16().float())


def int8_product(x: Tensor, weight: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float32).tiny  # the row of padding is zero
    x_scale = (x.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=tiny)
    scale = (weight.abs().amax(-1) / LARGEST).clamp(min=tiny)
    return F.linear((x / x_scale).round(), (weight / scale[:, None]).round()) * x_scale * scale
