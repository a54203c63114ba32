"""Random calls of a backend's cross-entropy and residual dropout, against float64 and torch."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kernel_gate import row_loops
from kernel_gate.cases import LAYOUTS, laid_out
from kernel_gate.report import Errors, type_name
from lightconv_mt.ops import Backend
from lightconv_mt.ops.cross_entropy import Smoothing, cross_entropy_
from lightconv_mt.ops.residual import residual

# Around vectors and, the last ones, wider than what a program of a GPU holds.
VOCABULARIES = [1, 2, 3, 15, 16, 17, 63, 64, 65, 257, 1000, 4099, 10_001]


@dataclass(frozen=True, kw_only=True)
class LossCase:
    """One call of `cross_entropy_`; `str()` of it is enough to repeat it."""

    dtype: torch.dtype
    rows: int
    vocab: int
    label_smoothing: float
    agreement: float
    spread: float
    seed: int

    def __str__(self) -> str:
        return (
            f"R{self.rows} V{self.vocab} eps{self.label_smoothing} alpha{self.agreement} "
            f"spread{self.spread} seed{self.seed}"
        )


@dataclass(frozen=True, kw_only=True)
class ResidualCase:
    """One call of `residual`; `str()` of it is enough to repeat it."""

    dtype: torch.dtype
    y_dtype: torch.dtype
    shape: tuple[int, int, int]
    dropout: float
    seed: int
    layout: str

    def __str__(self) -> str:
        return (
            f"{self.shape} {type_name(self.y_dtype)} drop{self.dropout} "
            f"seed{self.seed} {self.layout}"
        )


def random_loss_case(rng: random.Random, types: Sequence[torch.dtype]) -> LossCase:
    """Rows that stand alone, or come in pairs."""
    return LossCase(
        dtype=rng.choice(types),
        rows=2 * rng.randint(1, 4),
        vocab=rng.choice(VOCABULARIES),
        label_smoothing=rng.choice([0.0, 0.1, 0.3]),
        agreement=rng.choice([0.0, 0.0, 1.0, 3.0]),
        spread=rng.choice([0.3, 3.0]),
        seed=rng.getrandbits(63),
    )


def random_residual_case(rng: random.Random, types: Sequence[torch.dtype]) -> ResidualCase:
    """Often a residual in float32 and a sublayer's output in a short type, as under autocast."""
    dtype = rng.choice(types)
    short = [dtype, torch.bfloat16, torch.float16] if dtype is torch.float32 else [dtype]
    return ResidualCase(
        dtype=dtype,
        y_dtype=rng.choice(short),
        shape=(rng.randint(1, 3), rng.choice([1, 7, 33]), rng.choice([1, 3, 16, 33, 128, 257])),
        dropout=rng.choice([0.0, 0.1, 0.3, 0.9]),
        seed=rng.getrandbits(63),
        layout=rng.choice(LAYOUTS),
    )


def compare_losses(
    case: LossCase, errors: Errors, *, backend: Backend, device: str = "cpu"
) -> None:
    """Add the errors of one call, with the gradient and without."""
    generator = torch.Generator().manual_seed(case.seed)
    # Rows more than those of the call: they must stay.
    memory = case.spread * torch.randn(case.rows + 2, case.vocab, generator=generator)
    memory = memory.to(case.dtype).to(device)
    pairs = 2 if case.agreement else 1  # predictions of one target
    target = torch.randint(case.vocab, (case.rows // pairs,), generator=generator)
    target[0], target[-1] = 0, case.vocab - 1
    target = target.repeat(pairs)
    before, logits = memory.clone(), memory[1:-1]
    exact, sums = row_loops.cross_entropy(
        logits.double().cpu().numpy(),
        target.numpy(),
        label_smoothing=case.label_smoothing,
        agreement=case.agreement,
    )
    smoothing = Smoothing(label_smoothing=case.label_smoothing, agreement=case.agreement)
    target, wide = target.to(device), logits.to(torch.float64, copy=True)
    without = cross_entropy_(logits, target, smoothing, gradient=False, backend=backend)
    unchanged = torch.equal(memory, before)
    plain = cross_entropy_(wide, target, smoothing, gradient=True, backend=Backend.torch)
    found = cross_entropy_(logits, target, smoothing, gradient=True, backend=backend)
    unchanged &= torch.equal(memory[[0, -1]], before[[0, -1]])
    name = "paired cross-entropy" if smoothing.paired else "cross-entropy"
    for quantity, ours, torchs in (
        ("loss", found[0], plain[0]),
        ("nll", found[1], plain[1]),
        ("gradient", logits, wide),
    ):
        scale, loop = (torch.as_tensor(getattr(each, quantity)) for each in (sums, exact))
        for other, expected in (("loop", loop), ("torch", torchs.cpu())):
            errors.compare(
                *(name, quantity, other), found=ours, expected=expected, sums=scale, case=case
            )
    same = all(map(torch.equal, found, without))
    for quantity, holds in (("loss, no gradient", same), ("memory around", unchanged)):
        errors.require(name, quantity, "itself", dtype=case.dtype, holds=holds, case=case)


def compare_residuals(
    case: ResidualCase, errors: Errors, *, backend: Backend, device: str = "cpu"
) -> None:
    """Add the errors of one call, forward and backward."""
    generator = torch.Generator().manual_seed(case.seed)
    x, y, grad = (
        laid_out(torch.randn(case.shape, generator=generator).to(dtype).to(device), case.layout)
        for dtype in (case.dtype, case.y_dtype, case.dtype)
    )
    wide = [each.double().cpu().numpy() for each in (x, y, grad)]
    exact = row_loops.residual(*wide, dropout=case.dropout, seed=case.seed)
    sizes = [np.abs(each) for each in wide]
    sums = row_loops.residual(*sizes, dropout=case.dropout, seed=case.seed)
    name = "residual dropout"
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    joined = residual(x, y, dropout=case.dropout, seed=case.seed, backend=backend)
    grad_x, grad_y = torch.autograd.grad(joined, (x, y), grad)
    for quantity, found, loop, scale in zip(
        ("y", "grad_y"), (joined.detach(), grad_y), exact, sums, strict=True
    ):
        expected, size = torch.from_numpy(loop), torch.from_numpy(scale)
        errors.compare(
            *(name, quantity, "loop"), found=found, expected=expected, sums=size, case=case
        )
    same = torch.equal(grad_x, grad)
    errors.require(name, "grad_x", "grad", dtype=case.dtype, holds=same, case=case)
