"""Learning-rate schedules as pure functions of the step (formulas of the paper's recipes)."""

from dataclasses import dataclass
from math import cos, floor, inf, log, pi, sqrt
from typing import TypeVar

from lightconv_mt.errors import ConfigError


@dataclass(kw_only=True)
class ScheduleConfig:
    """Base of every schedule: linear warm-up, then `decayed`; `name` picks the class."""

    name: str
    warmup_steps: int = 4000
    warmup_init_lr: float = 1e-7

    def __post_init__(self) -> None:
        if self.warmup_steps < 1:
            raise ConfigError(f"schedule.warmup_steps is {self.warmup_steps}; give 1 or more")
        _check_rate(self, "warmup_init_lr")

    def lr(self, done: int, peak_lr: float) -> float:
        """Learning rate of the next step.

        Args:
            done: optimiser steps done so far, so that as many steps as a warm-up and a period of
                `cosine` have end with that period.
            peak_lr: learning rate at the end of the warm-up.
        """
        if done < self.warmup_steps:
            return self.warmup_init_lr + done * (peak_lr - self.warmup_init_lr) / self.warmup_steps
        return self.decayed(done, peak_lr)

    def decayed(self, done: int, peak_lr: float) -> float:
        """Learning rate after the warm-up."""
        raise NotImplementedError


SCHEDULES: dict[str, type[ScheduleConfig]] = {}

Config = TypeVar("Config", bound=type[ScheduleConfig])


def register_schedule(config: Config) -> Config:
    """Class decorator: make a schedule selectable by the default of its `name` field."""
    SCHEDULES[str(config.__dataclass_fields__["name"].default)] = config
    return config


@register_schedule
@dataclass(kw_only=True)
class InverseSqrtConfig(ScheduleConfig):
    """lr = peak * sqrt(warmup_steps / done) (Vaswani et al., 2017; fairseq's inverse_sqrt)."""

    name: str = "inverse_sqrt"

    def decayed(self, done: int, peak_lr: float) -> float:
        """Inverse square root of the steps done."""
        return peak_lr * sqrt(self.warmup_steps / done)


@register_schedule
@dataclass(kw_only=True)
class CosineConfig(ScheduleConfig):
    """Cosine annealing with restarts (Loshchilov and Hutter, 2017; fairseq's cosine).

    Period i lasts `period_steps * period_mult**i` steps and falls from `peak * shrink**i` to
    `min_lr * shrink**i`.
    """

    name: str = "cosine"
    period_steps: int = 20000
    period_mult: float = 1.0
    shrink: float = 1.0
    min_lr: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.period_steps < 1:
            raise ConfigError(f"schedule.period_steps is {self.period_steps}; give 1 or more")
        if not 1.0 <= self.period_mult < inf:
            raise ConfigError(f"schedule.period_mult is {self.period_mult}; give 1 or more")
        if not 0.0 < self.shrink <= 1.0:
            raise ConfigError(f"schedule.shrink is {self.shrink}; give a factor in (0, 1]")
        _check_rate(self, "min_lr")

    def decayed(self, done: int, peak_lr: float) -> float:
        """Half a cosine a period."""
        since, mult = done - self.warmup_steps, self.period_mult
        if mult == 1.0:
            period, length, start = since // self.period_steps, float(self.period_steps), 0.0
            start = period * length
        else:
            period = floor(log(1.0 - since / self.period_steps * (1.0 - mult), mult))
            length = self.period_steps * mult**period
            start = self.period_steps * (1.0 - mult**period) / (1.0 - mult)
        scale = self.shrink**period
        low, high = self.min_lr * scale, peak_lr * scale
        return low + 0.5 * (high - low) * (1.0 + cos(pi * (since - start) / length))


def _check_rate(config: ScheduleConfig, key: str) -> None:
    if not 0.0 <= (rate := getattr(config, key)) < inf:
        raise ConfigError(f"schedule.{key} is {rate}; give 0 or more")
