"""Dropout of activations: rate, scale, reproducibility."""

import pytest
import torch

from lightconv_mt.ops.dropout import dropout


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rate_and_scale(probability: float, dtype: torch.dtype) -> None:
    y = dropout(torch.ones(401, 501, dtype=dtype), probability, training=True)
    assert y.dtype is dtype
    kept = y[y != 0]
    assert len(kept) / y.numel() == pytest.approx(1 - probability, abs=0.005)
    assert float(kept.double().mean()) == pytest.approx(1 / (1 - probability), rel=4e-3)
    assert len(kept.unique()) == 1


def test_no_dropout_returns_the_input() -> None:
    x = torch.randn(3, 4)
    assert dropout(x, 0.3, training=False) is x
    assert dropout(x, 0.0, training=True) is x


def test_the_generator_decides_and_the_gradient_has_the_same_mask() -> None:
    x = torch.randn(7, 13, requires_grad=True)
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        outputs.append(dropout(x, 0.4, training=True))
    assert torch.equal(*outputs)
    (gradient,) = torch.autograd.grad(outputs[0].sum(), x)
    assert torch.equal(gradient != 0, outputs[0] != 0)


def test_halves_of_a_mask_are_independent() -> None:
    y = dropout(torch.ones(4 * 50_000), 0.5, training=True).view(-1, 4) != 0
    correlation = torch.corrcoef(y.double().T) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.02
