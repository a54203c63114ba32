"""The gate of cross-entropy and residual dropout: what is right passes, what is wrong is named."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernel_gate import rows
from kernel_gate.report import Errors
from kernel_gate.rows import LossCase, ResidualCase
from lightconv_mt.ops import Backend
from lightconv_mt.ops.cross_entropy import Smoothing, cross_entropy_
from lightconv_mt.ops.residual import residual

LOSS = LossCase(
    dtype=torch.float32,
    rows=4,
    vocab=17,
    label_smoothing=0.1,
    agreement=3.0,
    spread=3.0,
    seed=2**40 + 3,
)
RESIDUAL = ResidualCase(
    dtype=torch.float32,
    y_dtype=torch.bfloat16,
    shape=(2, 7, 33),
    dropout=0.3,
    seed=2**40 + 3,
    layout="slice",
)
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def failures(errors: Errors) -> set[str]:
    return {quantity[2] for quantity, worst in errors.found.items() if worst.failed}


def losses_of(case: LossCase = LOSS) -> Errors:
    errors = Errors()
    rows.compare_losses(case, errors, backend=Backend.torch)
    return errors


def residuals_of(case: ResidualCase = RESIDUAL) -> Errors:
    errors = Errors()
    rows.compare_residuals(case, errors, backend=Backend.torch)
    return errors


def test_plain_torch_passes() -> None:
    rng, errors = random.Random(1), Errors()
    for _ in range(60):
        # Plain torch rounds more than once in short types where it joins.
        join = rows.random_residual_case(rng, [torch.float32, torch.float64])
        rows.compare_losses(rows.random_loss_case(rng, TYPES), errors, backend=Backend.torch)
        rows.compare_residuals(join, errors, backend=Backend.torch)
    assert not failures(errors)
    assert {quantity[0] for quantity in errors.found} == {
        *("cross-entropy", "paired cross-entropy", "residual dropout"),
    }


Loss = Callable[..., tuple[Tensor, Tensor]]


def other_smoothing(logits: Tensor, target: Tensor, smoothing: Smoothing, **options: Any) -> Any:
    words = logits.shape[1]
    less = replace(smoothing, label_smoothing=smoothing.label_smoothing * (words - 1) / words)
    return cross_entropy_(logits, target, less, **options)


def half_agreement(logits: Tensor, target: Tensor, smoothing: Smoothing, **options: Any) -> Any:
    less = replace(smoothing, agreement=smoothing.agreement / 2)
    return cross_entropy_(logits, target, less, **options)


def last_word_unwritten(
    logits: Tensor, target: Tensor, smoothing: Smoothing, **options: Any
) -> Any:
    last = logits[:, -1].clone()
    found = cross_entropy_(logits, target, smoothing, **options)
    logits[:, -1] = last
    return found


def written_without_being_wanted(
    logits: Tensor, target: Tensor, smoothing: Smoothing, *, gradient: bool, backend: Backend
) -> Any:
    return cross_entropy_(logits, target, smoothing, gradient=True, backend=backend)


@pytest.mark.parametrize(
    ("wrong", "quantities"),
    [
        (other_smoothing, {"loss", "gradient"}),
        (half_agreement, {"loss", "gradient"}),
        (last_word_unwritten, {"gradient"}),
        (written_without_being_wanted, {"memory around"}),
    ],
)
def test_a_wrong_loss_is_found(
    wrong: Loss, quantities: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not failures(losses_of())
    monkeypatch.setattr(rows, "cross_entropy_", wrong)
    assert failures(losses_of()) >= quantities


def test_a_wrong_mask_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_seed(x: Tensor, y: Tensor, *, seed: int, **options: Any) -> Tensor:
        return residual(x, y, seed=seed & 0xFFFFFFFF, **options)

    assert not failures(residuals_of())
    monkeypatch.setattr(rows, "residual", other_seed)
    assert failures(residuals_of()) == {"y", "grad_y"}


def test_what_is_kept_but_not_rescaled_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def unscaled(x: Tensor, y: Tensor, *, dropout: float, **options: Any) -> Tensor:
        joined = residual(torch.zeros_like(x), y, dropout=dropout, **options)
        return x + joined * (1.0 - dropout)

    monkeypatch.setattr(rows, "residual", unscaled)
    assert failures(residuals_of()) == {"y", "grad_y"}


def test_random_cases_have_every_size_and_type() -> None:
    rng = random.Random(1)
    drawn = [rows.random_loss_case(rng, TYPES) for _ in range(300)]
    assert {case.vocab for case in drawn} == set(rows.VOCABULARIES)
    assert {case.dtype for case in drawn} == set(TYPES)
    assert {case.agreement > 0 for case in drawn} == {True, False}
    joins = [rows.random_residual_case(rng, TYPES) for _ in range(300)]
    assert {case.dropout for case in joins} == {0.0, 0.1, 0.3, 0.9}
    assert (torch.float32, torch.bfloat16) in {(case.dtype, case.y_dtype) for case in joins}
