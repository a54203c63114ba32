"""Adam against its formula, clipping."""

import pytest
import torch
from torch import nn

from lightconv_mt.errors import ConfigError
from lightconv_mt.train.optim import OptimConfig, build_optimizer, clip_gradients


def test_adam_with_decoupled_weight_decay() -> None:
    config = OptimConfig(lr=0.01, weight_decay=0.1)
    parameter = nn.Parameter(torch.randn(5, dtype=torch.float64))
    expected, m, v = parameter.detach().clone(), torch.zeros(5).double(), torch.zeros(5).double()
    optimizer = build_optimizer(config, [parameter])
    for step in range(1, 6):
        gradient = torch.randn(5, dtype=torch.float64)
        parameter.grad = gradient.clone()
        optimizer.step()
        m = 0.9 * m + 0.1 * gradient
        v = 0.98 * v + 0.02 * gradient**2
        expected -= 0.1 * 0.01 * expected
        expected -= 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.98**step)).sqrt() + 1e-8)
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=0)


def test_a_step_is_seen_in_the_version_of_the_parameters() -> None:
    parameter = nn.Parameter(torch.randn(5))
    optimizer = build_optimizer(OptimConfig(), [parameter])
    parameter.grad = torch.randn(5)
    before = parameter._version
    optimizer.step()
    assert parameter._version > before


@pytest.mark.parametrize(("clip_norm", "after"), [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)])
def test_clipping_returns_the_norm_before(clip_norm: float, after: float) -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert float(clip_gradients([first, second], clip_norm)) == pytest.approx(5.0)
    assert float(torch.hypot(first.grad, second.grad)) == pytest.approx(after, rel=1e-5)


@pytest.mark.parametrize(
    "values", [{"lr": 0.0}, {"lr": float("nan")}, {"beta2": 1.0}, {"clip_norm": -1.0}]
)
def test_impossible_settings_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        OptimConfig(**values)
