"""The gate's own loop and comparison: what is right passes, what is slightly wrong is named."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernel_gate import cases, loops, numerics, steps
from kernel_gate.cases import Case
from kernel_gate.report import Errors
from lightconv_mt.ops import Backend, dispatch, reference
from lightconv_mt.ops.reference import lightconv_reference

CASE = Case(
    dynamic=False,
    dtype=torch.float32,
    weight_dtype=torch.float32,
    batch=2,
    time=9,
    heads=2,
    share=3,
    width=4,
    padding_left=2,
    normalize=True,
    dropout=0.3,
    seed=2**40 + 3,
    layout="slice",
)


def compared(case: Case = CASE) -> Errors:
    errors = Errors()
    numerics.compare(case, errors, backend=Backend.reference)
    return errors


def failures(errors: Errors) -> set[tuple[str, ...]]:
    return {quantity[2:] for quantity, worst in errors.found.items() if worst.failed}


def test_the_loop_is_a_convolution_by_hand() -> None:
    x = np.array([[[1.0], [2.0], [4.0]]])
    weight = np.array([[1.0, 10.0]])
    options = {"padding_left": 1, "normalize": False, "dropout": 0.0, "seed": 0}
    exact, sums = loops.convolve(x, weight, np.array([[[1.0], [0.0], [-1.0]]]), **options)
    assert exact.y.ravel().tolist() == [10.0, 21.0, 42.0]
    assert exact.grad_x.ravel().tolist() == [10.0, -1.0, -10.0]
    assert exact.grad_weight.ravel().tolist() == [-2.0, 1.0 - 4.0]
    assert sums.grad_weight.ravel().tolist() == [2.0, 5.0]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_the_reference_passes_both_comparisons(dynamic: bool, layout: str) -> None:
    errors = compared(cases.Case(**{**vars(CASE), "dynamic": dynamic, "layout": layout}))
    assert not failures(errors)
    assert {quantity[3] for quantity in errors.found} == {"loop", "reference"}


def shifted(x: Tensor, weight: Tensor, *, padding_left: int, **options: object) -> Tensor:
    return lightconv_reference(x, weight, padding_left=padding_left - 1, **options)


def last_tap_forgotten(x: Tensor, weight: Tensor, **options: object) -> Tensor:
    raw = {**options, "normalize": False, "dropout": 0.0}
    lost = torch.zeros_like(weight)
    lost[:, -1] = 1e-4
    return lightconv_reference(x, weight, **options) - lightconv_reference(x, lost, **raw)


def last_row_unwritten(x: Tensor, weight: Tensor, **options: object) -> Tensor:
    y = lightconv_reference(x, weight, **options)
    return torch.cat([y[:, :-1], torch.full_like(y[:, -1:], torch.nan)], dim=1)


def other_seed(x: Tensor, weight: Tensor, *, seed: int, **options: object) -> Tensor:
    return lightconv_reference(x, weight, seed=seed & 0xFFFFFFFF, **options)


@pytest.mark.parametrize("wrong", [shifted, last_tap_forgotten, last_row_unwritten, other_seed])
def test_a_wrong_function_is_found(
    wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The reference is wrong with it: the loop alone can tell.
    monkeypatch.setattr(dispatch, "lightconv_reference", wrong)
    assert ("y", "loop") in failures(compared())


def test_a_nan_that_leaks_backwards_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(x: Tensor, weight: Tensor, **options: object) -> Tensor:
        return lightconv_reference(x, weight, **options) + 0.0 * x.sum(1, keepdim=True)

    causal = cases.Case(**{**vars(CASE), "padding_left": CASE.width - 1})
    assert not failures(compared(causal))
    monkeypatch.setattr(dispatch, "lightconv_reference", leaking)
    assert failures(compared(causal)) == {("y", "itself, NaN later")}


def step_failures(errors: Errors) -> set[str]:
    return {quantity[2] for quantity, worst in errors.found.items() if worst.failed}


def compared_steps() -> Errors:
    errors, rng = Errors(), random.Random(1)
    for _ in range(10):
        case = steps.random_step_case(rng, [torch.float32])
        steps.compare_steps(case, rng, errors, backend=Backend.reference)
    return errors


def test_steps_of_the_reference_pass() -> None:
    errors = compared_steps()
    assert not step_failures(errors)
    assert {quantity[2] for quantity in errors.found} == {"y", "ring"}


def test_a_ring_that_is_not_turned_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("lightconv", "dynamicconv"):
        name = f"{kind}_step_reference"
        right = getattr(reference, name)

        def unturned(x: Tensor, ring: Tensor, *rest: Tensor, right: Any = right, **options: bool):
            return right(x, ring.clone(), *rest, **options)

        monkeypatch.setattr(dispatch, name, unturned)
    assert step_failures(compared_steps()) == {"y", "ring"}


def test_positions_that_all_rows_share_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("lightconv", "dynamicconv"):
        name = f"{kind}_step_reference"
        right = getattr(reference, name)

        def shared(
            x: Tensor, ring: Tensor, at: Tensor, *rest: Tensor, right: Any = right, **options: bool
        ) -> Tensor:
            return right(x, ring, at[:1].expand_as(at), *rest, **options)

        monkeypatch.setattr(dispatch, name, shared)
    assert step_failures(compared_steps()) == {"y", "ring"}


def test_nothing_compared_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert not Errors().print()
    assert "nothing was checked" in capsys.readouterr().out


def test_random_cases_have_every_size_type_and_layout() -> None:
    rng = random.Random(1)
    drawn = [cases.random_case(rng) for _ in range(1000)]
    assert {case.width for case in drawn} == set(cases.WIDTHS)
    assert {case.dtype for case in drawn} == set(cases.TYPES)
    assert {case.layout for case in drawn} == set(cases.LAYOUTS)
    assert {1, 33, 257, 1025} <= {case.time for case in drawn}
    assert {case.padding_left - case.width for case in drawn} >= {-1, -2, -3}


@pytest.mark.parametrize("layout", cases.LAYOUTS[1:])
def test_layouts_are_strided(layout: str) -> None:
    case = cases.Case(**{**vars(CASE), "layout": layout})
    x, _, grad_y = cases.tensors(case)
    plain, _, plain_grad_y = cases.tensors(CASE)
    assert not x.is_contiguous() and not grad_y.is_contiguous()
    assert torch.equal(x, plain) and torch.equal(grad_y, plain_grad_y)
