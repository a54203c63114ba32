"""Calls of the Triton functions, with the tiles that a large input on a given GPU gets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The GPU whose tiles bytes are counted with.
COUNTED_FOR = "sm_90"
# Bytes moved over inputs read once and outputs written once.
LIMITS = {"forward": 1.1, "backward": 1.3, "step": 1.1}
# The sizes of x that tiles are chosen for: a training batch, and one token for 512 hypotheses.
LARGE = {
    "forward": (32, 512, 512),
    "backward": (32, 512, 512),
    "step": (512, 1, 512),
}


@dataclass(frozen=True, kw_only=True)
class Call:
    """A convolution as in training (softmax, weight dropout, causal), or one step of it.

    The sizes that are not given are a part of `LARGE`, wide and long enough for whole tiles.
    """

    kind: str
    direction: str
    dtype: str
    width: int
    batch: int = 1
    time: int = 512
    channels: int = 128
    heads: int = 2

    @property
    def name(self) -> str:
        """Of the function."""
        return f"{self.kind} {self.direction}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of x; a step has a row for every eighth position."""
        if self.direction == "step":
            return self.batch * self.time // 8, 1, self.channels
        return self.batch, self.time, self.channels

    @property
    def scale(self) -> float:
        """How many times larger `LARGE` is."""
        return prod(LARGE[self.direction]) / prod(self.shape)

    @property
    def limit(self) -> float:
        """Of distinct bytes of all programs over the minimum."""
        return LIMITS[self.direction]

    def run(self, *, architecture: str) -> None:
        """Launch its kernels on the CPU, which works while launches are recorded or interpreted."""
        step = self.direction == "step"
        module = import_module(f"lightconv_mt.ops.triton_{'step' if step else self.kind}")
        suffix = {"forward": "triton", "backward": "triton_backward", "step": "step_triton"}
        function = getattr(module, f"{self.kind}_{suffix[self.direction]}")
        dropout = {} if step else {"dropout": 0.1, "seed": 1, "padding_left": self.width - 1}
        batch, time, _ = LARGE[self.direction]
        with tiles_for(module, architecture, positions=batch * time):
            function(*self.arguments(), **dropout)

    def arguments(self) -> list[Tensor]:
        """Tensors of the function, in its order."""
        dtype = TYPES[self.dtype]
        x, grad_y = torch.randn(2, *self.shape).to(dtype)
        rows = () if self.kind == "lightconv" else self.shape[:2]
        weight = torch.randn(*rows, self.heads, self.width).to(dtype)
        if self.direction == "step":
            ring = x.new_zeros(len(x), self.width - 1, self.channels)
            return [x, ring, torch.arange(len(x)), weight]
        return [x, weight] if self.direction == "forward" else [grad_y, x, weight]

    @property
    def minimum_bytes(self) -> int:
        """Every input read once and every output written once."""
        size = TYPES[self.dtype].itemsize
        positions, x = prod(self.shape[:2]), prod(self.shape)
        weights = self.heads * self.width * (1 if self.kind == "lightconv" else positions)
        if self.direction == "step":
            # x, y, the new input in the ring, all of the ring, and where it begins (int64).
            return size * (x * (3 + self.width - 1) + weights) + 8 * positions
        tensors = 2 if self.direction == "forward" else 3  # x and y, or x and two gradients
        return size * (tensors * x + (tensors - 1) * weights)


@contextmanager
def tiles_for(module: ModuleType, architecture: str, *, positions: int) -> Iterator[None]:
    """Let a module's small inputs have the tiles of large ones."""
    chosen = module.choose_launch

    def choose_launch(kernel: str, **given: Any) -> Any:
        return chosen(kernel, **given | {"positions": positions, "architecture": architecture})

    with patch.object(module, "choose_launch", choose_launch):
        yield
