"""Learning rates against fairseq's formulas as reference.md states them."""

from math import cos, floor, pi, sqrt

import pytest

from lightconv_mt.errors import ConfigError
from lightconv_mt.train.schedule import SCHEDULES, CosineConfig, InverseSqrtConfig


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_warm_up_is_linear(name: str) -> None:
    schedule = SCHEDULES[name](warmup_steps=100, warmup_init_lr=1e-7)
    assert schedule.lr(0, 1e-3) == 1e-7
    assert schedule.lr(50, 1e-3) == pytest.approx(1e-7 + 50 * (1e-3 - 1e-7) / 100, rel=1e-12)
    assert schedule.lr(100, 1e-3) == pytest.approx(1e-3, rel=1e-12)


def test_inverse_square_root() -> None:
    schedule = InverseSqrtConfig(warmup_steps=4000)
    for step in (4000, 4001, 16000, 50000):
        assert schedule.lr(step, 5e-4) == pytest.approx(5e-4 * sqrt(4000) / sqrt(step), rel=1e-12)


@pytest.mark.parametrize("shrink", [1.0, 0.5])
def test_cosine_with_equal_periods(shrink: float) -> None:
    schedule = CosineConfig(warmup_steps=10, period_steps=20, shrink=shrink, min_lr=1e-6)
    for step in range(10, 100):
        i = floor((step - 10) / 20)
        t = step - 10 - i * 20
        expected = 1e-6 * shrink**i + 0.5 * (1e-3 - 1e-6) * shrink**i * (1 + cos(pi * t / 20))
        assert schedule.lr(step, 1e-3) == pytest.approx(expected, rel=1e-9)


def test_cosine_with_growing_periods() -> None:
    """Periods last 10, 20, 40 steps: the rate is back at its peak where each begins."""
    schedule = CosineConfig(warmup_steps=5, period_steps=10, period_mult=2.0, min_lr=0.0)
    for start, length in ((5, 10), (15, 20), (35, 40)):
        assert schedule.lr(start, 1.0) == pytest.approx(1.0)
        assert schedule.lr(start + length // 2, 1.0) == pytest.approx(0.5)
        assert schedule.lr(start + length - 1, 1.0) < 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_steps": 0}, "warmup_steps is 0"),
        ({"shrink": 0.0}, "shrink is 0.0"),
        ({"period_mult": 0.5}, "period_mult is 0.5"),
    ],
)
def test_impossible_schedules_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CosineConfig(**values)
