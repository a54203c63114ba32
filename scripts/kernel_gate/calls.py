"""Calls of the Triton functions, with the tiles that a large input on a given GPU gets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from unittest.mock import patch

import torch

# What a call's tiles are chosen for: a training batch.
POSITIONS = 32 * 512
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One direction of a convolution as in training: softmax over the taps, and weight dropout."""

    kind: str
    direction: str
    dtype: str
    width: int
    # A part of a training batch, wide and long enough for whole tiles.
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
        """Of x."""
        return self.batch, self.time, self.channels

    def run(self, *, architecture: str) -> None:
        """Launch its kernels on the CPU, which works while launches are recorded or interpreted."""
        module = import_module(f"lightconv_mt.ops.triton_{self.kind}")
        dtype = TYPES[self.dtype]
        x, grad_y = torch.randn(2, *self.shape).to(dtype)
        rows = () if self.kind == "lightconv" else (self.batch, self.time)
        weight = torch.randn(*rows, self.heads, self.width).to(dtype)
        options = {"padding_left": self.width - 1, "dropout": 0.1, "seed": 1}
        with tiles_for(module, architecture):
            if self.direction == "forward":
                getattr(module, f"{self.kind}_triton")(x, weight, **options)
            else:
                getattr(module, f"{self.kind}_triton_backward")(grad_y, x, weight, **options)

    @property
    def minimum_bytes(self) -> int:
        """Every input read once and every output written once."""
        size = TYPES[self.dtype].itemsize
        positions = self.batch * self.time
        activations = 2 if self.direction == "forward" else 3  # x and y, or x and two gradients
        weights = self.heads * self.width * (1 if self.kind == "lightconv" else positions)
        return size * (activations * positions * self.channels + (activations - 1) * weights)


@contextmanager
def tiles_for(module: ModuleType, architecture: str) -> Iterator[None]:
    """Let a module's small inputs have the tiles of large ones."""
    chosen = module.choose_launch

    def choose_launch(kernel: str, **given: object) -> object:
        return chosen(kernel, **given | {"positions": POSITIONS, "architecture": architecture})

    with patch.object(module, "choose_launch", choose_launch):
        yield
