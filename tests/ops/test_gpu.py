"""The Triton kernels on a GPU: random calls and steps against a loop in float64."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernel_gate.cases import TYPES, random_case
from kernel_gate.numerics import compare, outputs_hold_nan
from kernel_gate.report import Errors
from kernel_gate.steps import compare_steps, random_step_case
from lightconv_mt.ops import Backend, dynamicconv, lightconv

SUPPORTED = [dtype for dtype in TYPES if dtype is not torch.float64]


def failures(errors: Errors) -> list[str]:
    return [f"{name}: {worst}" for name, worst in errors.found.items() if worst.failed]


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(20))
def test_random_calls(seed: int) -> None:
    rng, errors, backend = random.Random(seed), Errors(), Backend("triton")
    with outputs_hold_nan(backend):
        for _ in range(5):
            compare(random_case(rng, SUPPORTED), errors, backend=backend, device="cuda")
    assert errors.found and not failures(errors)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(10))
def test_random_steps(seed: int) -> None:
    rng, errors, backend = random.Random(seed), Errors(), Backend("triton")
    for _ in range(5):
        case = random_step_case(rng, SUPPORTED)
        compare_steps(case, rng, errors, backend=backend, device="cuda")
    assert errors.found and not failures(errors)


@pytest.mark.gpu
@pytest.mark.parametrize("function", [lightconv, dynamicconv])
@pytest.mark.parametrize("width", [3, 31])
def test_a_training_batch_repeats_bit_for_bit(function: Callable[..., Tensor], width: int) -> None:
    x = torch.randn(32, 512, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    rows = (32, 512) if function is dynamicconv else ()
    weight = torch.randn(*rows, 8, width, device="cuda", requires_grad=True)
    results = []
    for _ in range(2):
        y = function(x, weight, padding_left=width // 2, dropout=0.1, backend=Backend("triton"))
        results.append((y, *torch.autograd.grad(y.square().mean(), (x, weight))))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
