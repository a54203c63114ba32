"""Random one-step calls of a backend: rows of different ages, stretches of different lengths."""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kernel_gate import loops
from kernel_gate.cases import Case, random_case, tensors
from kernel_gate.report import Errors
from lightconv_mt import ops
from lightconv_mt.ops import Backend

STRETCHES = (1, 2, 3, 7)
LONGEST = 80


def random_step_case(rng: random.Random, types: Sequence[torch.dtype]) -> Case:
    """Causal and without dropout, as while translating; often longer than the ring."""
    case = random_case(rng, types)
    time = rng.choice([1, rng.randint(1, LONGEST), LONGEST])
    return replace(case, time=time, padding_left=case.width - 1, dropout=0.0)


def compare_steps(
    case: Case, rng: random.Random, errors: Errors, *, backend: Backend, device: str = "cpu"
) -> None:
    """Read each row's first positions into its ring, then step through the others."""
    x, weight, _ = tensors(case, device=device)
    wide = [each.double().cpu().numpy() for each in (x, weight, x)]
    exact, sums = loops.convolve(wide[0], wide[1], wide[2], **case.options)
    ages = [rng.randint(0, (case.time - 1) // 2) for _ in range(case.batch)]
    ages = rng.choice([ages, ages[:1] * case.batch])
    steps = case.time - max(ages)  # at least 1
    ring, around = _rings(x, ages, slots=case.width - 1)
    stretch = rng.choice([*STRETCHES, steps])
    taken = torch.tensor(ages)[:, None] + torch.arange(steps)  # (N, steps) positions
    rows = torch.arange(case.batch)[:, None]
    function = getattr(ops, f"{case.kind}_step")
    outputs = []
    for start in range(0, steps, stretch):
        new = taken[:, start : start + stretch]
        # Rows of one age are read in place, with whatever strides they have.
        stretch_of_all = slice(int(new[0, 0]), int(new[0, -1]) + 1)
        where = (slice(None), stretch_of_all) if len(set(ages)) == 1 else (rows, new)
        own = weight[where] if case.dynamic else weight
        position = new[:, 0].to(device)
        options = {"normalize": case.normalize, "backend": backend}
        outputs.append(function(x[where], ring, position, own, **options))
    y = torch.cat(outputs, dim=1)
    name, title = f"{case.kind}_step", f"{case} ages {ages} by {stretch}"
    loop, scale = (torch.from_numpy(each.y)[rows, taken] for each in (exact, sums))
    errors.compare(name, "y", "loop", found=y, expected=loop, sums=scale, case=title)
    expected, _ = _rings(x, [age + steps for age in ages], slots=case.width - 1)
    holds = torch.equal(ring, expected) and bool(around.isnan().all())
    errors.require(name, "ring", "inputs", dtype=y.dtype, holds=holds, case=title)


def _rings(x: Tensor, ages: list[int], *, slots: int) -> tuple[Tensor, Tensor]:
    """The last inputs before each row's age, and the NaN around them: (2, N, slots, C)."""
    memory = x.new_full((3, x.shape[0], slots, x.shape[2]), torch.nan)
    ring = memory[1].zero_()
    for row, age in enumerate(ages):
        for position in range(max(0, age - slots), age):
            ring[row, position % slots] = x[row, position]
    return ring, memory[::2]
