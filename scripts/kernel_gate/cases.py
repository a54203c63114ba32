"""Random calls of the convolutions: sizes, types, memory layouts and options."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WIDTHS = [*range(1, 10), 15, 31, 63, 127, 255]
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = ["plain", "time first", "slice", "channels apart"]
# Multiply-adds of the largest case: the loops in Python stay under seconds.
LARGEST = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call; `str()` of it is enough to repeat it."""

    dynamic: bool
    dtype: torch.dtype
    weight_dtype: torch.dtype
    batch: int
    time: int
    heads: int
    share: int
    width: int
    padding_left: int
    normalize: bool
    dropout: float
    seed: int
    layout: str

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of `ops.lightconv`."""
        names = ("padding_left", "normalize", "dropout", "seed")
        return {name: getattr(self, name) for name in names}

    @property
    def kind(self) -> str:
        """Name of the function in `ops`."""
        return "dynamicconv" if self.dynamic else "lightconv"

    def __str__(self) -> str:
        return (
            f"B{self.batch} T{self.time} H{self.heads} C/H{self.share} K{self.width} "
            f"pad{self.padding_left}{'' if self.normalize else ' raw'}"
            f"{f' drop{self.dropout}' if self.dropout else ''} seed{self.seed} {self.layout}"
        )


def random_case(rng: random.Random, types: Sequence[torch.dtype] = TYPES) -> Case:
    """One case; every size is drawn with the awkward ones in mind."""
    width = rng.choice(WIDTHS)
    time = rng.choices([rng.randint(1, width + 5), 33, 257, 1025], [12, 4, 2, 1])[0]
    batch, heads = rng.choice([1, 3]), rng.choice([1, 4, 8, 16])
    fitting = LARGEST // (batch * time * heads * width)
    dtype = rng.choice(types)
    return Case(
        dynamic=rng.random() < 0.5,
        dtype=dtype,
        weight_dtype=rng.choice([dtype, dtype, torch.promote_types(dtype, torch.float32)]),
        batch=batch,
        time=time,
        heads=heads,
        share=rng.choice(
            [size for size in (1, 3, 4, 8, 16, 17, 33, 64) if size <= max(1, fitting)]
        ),
        width=width,
        padding_left=rng.choice([width - 1, width // 2, rng.randrange(width)]),
        normalize=rng.random() < 0.75,
        dropout=rng.choice([0.0, 0.3]),
        seed=rng.getrandbits(63),
        layout=rng.choice(LAYOUTS),
    )


def tensors(case: Case, *, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and the gradient of y; all memory between and around their elements is NaN."""
    generator = torch.Generator().manual_seed(case.seed)
    shape = (case.batch, case.time, case.heads * case.share)
    x, grad_y = (
        laid_out(torch.randn(shape, generator=generator).to(case.dtype).to(device), case.layout)
        for _ in range(2)
    )
    rows = (case.batch, case.time) if case.dynamic else ()
    weight = torch.randn((*rows, case.heads, case.width), generator=generator)
    return x, weight.to(case.weight_dtype).to(device), grad_y


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values elsewhere in memory."""
    order = {"time first": (1, 0, 2), "channels apart": (0, 2, 1)}.get(layout, (0, 1, 2))
    inside = values.permute(order)
    margin = 3 if layout == "slice" else 0
    buffer = inside.new_full([size + 2 * margin for size in inside.shape], torch.nan)
    window = buffer[tuple(slice(margin, margin + size) for size in inside.shape)]
    return window.copy_(inside).permute(order)
