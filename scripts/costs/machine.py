"""What the machine can do: products of the shapes that occur, and copies, measured now."""

import time
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from costs.counts import Count
from lightconv_mt.ops.products import linear
from mixer_costs import Product

# Seconds for each measurement; there are a few dozen.
PATIENCE = 0.1
COPIED = 2**26  # bytes: beyond caches


class Machine:
    """Speeds of a device with as many threads as torch has now.

    Attributes:
        bandwidth: bytes a second that copies read and write.
    """

    def __init__(self, device: torch.device) -> None:
        """Measure copies; products are measured when they are asked for."""
        self.device = device
        source, target = torch.ones(2, COPIED // 4, device=device)
        self.bandwidth = 2 * COPIED / fastest(lambda: target.copy_(source), device)
        self.product_seconds = cache(self._measure)

    def _measure(self, product: Product, dtype: torch.dtype) -> tuple[float, float]:
        """Seconds of a layer's product forward, and of the two of the backward pass."""
        rows, inner, outer = product
        x, weight, gradient = (
            torch.randn(shape, device=self.device).to(dtype)
            for shape in ((rows, inner), (outer, inner), (rows, outer))
        )
        read = x.requires_grad_(), weight.requires_grad_()
        y = linear(*read)
        forward = fastest(lambda: linear(*read), self.device)
        backward = fastest(
            lambda: torch.autograd.grad(y, read, gradient, retain_graph=True)[0], self.device
        )
        return forward, backward

    def speeds(
        self, counts: dict[str, Count], dtypes: Sequence[torch.dtype]
    ) -> dict[Product, list[float]]:
        """Multiply-adds a second, forward and backward, of each product that occurs, by dtype."""
        products = {each: None for count in counts.values() for each in count.products}
        return {
            each: [
                3 * each.multiply_adds / sum(self.product_seconds(each, dtype)) for dtype in dtypes
            ]
            for each in products
        }

    def limit(self, count: Count, dtype: torch.dtype, *, top_speed: float) -> float:
        """Least seconds of a part, forward and backward: its arithmetic or its traffic.

        Products go at the speed of their shape, what else is multiplied at the top speed.
        """
        arithmetic = 3 * count.others / top_speed
        for product, times in zip(count.products, count.repeats, strict=True):
            arithmetic += times * sum(self.product_seconds(product, dtype))
        return max(arithmetic, count.moved(dtype.itemsize) / self.bandwidth)


def fastest(function: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of the fastest of several calls."""
    best, deadline = float("inf"), time.perf_counter() + PATIENCE
    for _ in range(20):
        synchronize(device)
        started = time.perf_counter()
        function()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
        if time.perf_counter() > deadline:
            break
    return best


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to be done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
