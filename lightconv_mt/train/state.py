"""Where training stands, and what a validation found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a validation found.

    Attributes:
        metrics: by name; `valid/bleu` picks the best checkpoint.
        samples: (source, reference, hypothesis).
        figures: pictures by name.
    """

    metrics: dict[str, float]
    samples: list[tuple[str, str, str]] = field(default_factory=list)
    figures: "Mapping[str, Figure]" = field(default_factory=dict)


@dataclass(kw_only=True)
class TrainState:
    """Where training stands; with weights and optimiser state, all that resuming needs.

    Random numbers are not stored: every step seeds torch's generator from (seed, step).
    """

    step: int = 0
    epoch: int = 0
    index: int = 0  # of the next micro-batch in the epoch
    tokens: int = 0  # target tokens seen
    validated_step: int = 0
    metric_lines: int = 0  # of metrics.jsonl
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    rewinds: int = 0  # returns to a checkpoint because of numbers that were not finite
    norm_mean: float = 0.0  # running mean and variance of the gradient's norm
    norm_variance: float = 0.0
    best_bleu: float = -1.0
    best_step: int = 0  # 0: none yet
    validations_since_best: int = 0
    loss_sum: float = 0.0  # since the last log line
    nll_sum: float = 0.0
    norm_sum: float = 0.0
    token_count: int = 0
    step_count: int = 0
