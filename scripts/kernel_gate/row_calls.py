"""Calls of the Triton functions besides the convolutions: cross-entropy, residual dropout."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch

from kernel_gate.calls import COUNTED_FOR, TYPES
from lightconv_mt.ops import triton_cross_entropy, triton_residual
from lightconv_mt.ops.triton_table import choose_block


@dataclass(frozen=True, kw_only=True)
class CrossEntropyCall:
    """Loss and gradient of rows of logits over `width` words, in pairs or each alone.

    Bytes are counted as accessed: of a vocabulary wider than a program's block, what comes before
    the last block is read twice.
    """

    dtype: str
    width: int
    paired: bool
    rows: int = 4

    @property
    def name(self) -> str:
        """Of the function."""
        return "paired cross-entropy" if self.paired else "cross-entropy"

    @property
    def scale(self) -> float:
        """How many times larger a batch of 4,096 tokens is."""
        return 4096 * (2 if self.paired else 1) / self.rows

    @property
    def minimum_bytes(self) -> int:
        """Logits read once and written once, a target (int64), its logit and three losses."""
        size = TYPES[self.dtype].itemsize
        return self.rows * (2 * size * self.width + size + 8 + 3 * 4)

    @property
    def limit(self) -> float:
        """Of accessed bytes over the minimum: logits read twice at most, written once."""
        block = choose_block(
            "paired_cross_entropy" if self.paired else "cross_entropy",
            elements=self.width,
            architecture=COUNTED_FOR,
        )
        return 1.0 if block.elements >= self.width else 1.5

    def run(self, *, architecture: str) -> None:
        """Launch its kernel on the CPU, which works while launches are recorded or interpreted."""
        logits = torch.randn(self.rows, self.width).to(TYPES[self.dtype])
        target = torch.arange(self.rows)
        with blocks_of(architecture):
            triton_cross_entropy.cross_entropy_triton_(
                logits,
                target,
                peak=0.9,
                spread=1e-5,
                agreement=0.5,
                paired=self.paired,
                gradient=True,
            )


@dataclass(frozen=True, kw_only=True)
class ResidualCall:
    """`x + dropout(y)` or the gradient of y, as under autocast: x and the result in float32."""

    dtype: str
    direction: str
    width: int = 512
    rows: int = 64

    @property
    def name(self) -> str:
        """Of the function."""
        return f"residual {self.direction}"

    @property
    def scale(self) -> float:
        """How many times larger a batch of 4,096 tokens is."""
        return 4096 / self.rows

    @property
    def minimum_bytes(self) -> int:
        """Every input read once and every output written once."""
        wide, narrow = 4, TYPES[self.dtype].itemsize
        forward = self.direction == "forward"
        return self.rows * self.width * (2 * wide + narrow if forward else wide + narrow)

    @property
    def limit(self) -> float:
        """Of accessed bytes over the minimum."""
        return 1.1

    def run(self, *, architecture: str) -> None:
        """Launch its kernel on the CPU, which works while launches are recorded or interpreted."""
        x, y = torch.randn(2, self.rows, self.width)
        narrow = TYPES[self.dtype]
        with blocks_of(architecture):
            if self.direction == "forward":
                triton_residual.residual_triton(x, y.to(narrow), 0.1, 1, torch.float32)
            else:
                triton_residual.residual_triton(None, y, 0.1, 1, narrow)


@contextmanager
def blocks_of(architecture: str) -> Iterator[None]:
    """Let the modules choose the blocks of a GPU that is not here."""
    with ExitStack() as stack:
        for module in (triton_cross_entropy, triton_residual):
            stack.enter_context(patch.object(module, "architecture_of", lambda _: architecture))
        yield
