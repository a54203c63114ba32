"""How long to train: the options of the loop and their limits."""

from dataclasses import dataclass

from lightconv_mt.errors import ConfigError


@dataclass(kw_only=True)
class LoopConfig:
    """How long to train, how often to look, and when to stop."""

    max_steps: int = 50000
    max_epochs: int | None = None
    accumulate: int = 1  # micro-batches a step
    label_smoothing: float = 0.1
    rdrop: float = 0.0  # alpha of R-Drop: two dropout passes are drawn together; doubles a step
    ema: float = 0.0  # decay of a moving average of the weights, used in their place; 0: none
    log_every_steps: int = 100
    validate_every_steps: int = 1000
    patience: int | None = None  # validations without a better BLEU before stopping
    num_samples: int = 3  # translations shown at every validation
    # After so many updates without a finite gradient in a row the last checkpoint is taken up,
    # going on with the data behind them; that often at most.
    max_skipped_steps: int = 20
    max_rewinds: int = 2

    def __post_init__(self) -> None:
        for key in (
            *("max_steps", "accumulate", "log_every_steps", "validate_every_steps"),
            "max_skipped_steps",
        ):
            if getattr(self, key) < 1:
                raise ConfigError(f"train.{key} is {getattr(self, key)}; give 1 or more")
        for key in ("max_epochs", "patience"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"train.{key} is {value}; give 1 or more, or null for no limit")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(
                f"train.label_smoothing is {self.label_smoothing}; give a value in [0, 1)"
            )
        if not self.rdrop >= 0.0:
            raise ConfigError(f"train.rdrop is {self.rdrop}; give 0 or more")
        if not 0.0 <= self.ema < 1.0:
            raise ConfigError(
                f"train.ema is {self.ema}; give a decay in (0, 1), such as 0.999, or 0 for none"
            )
        for key in ("num_samples", "max_rewinds"):
            if getattr(self, key) < 0:
                raise ConfigError(f"train.{key} is {getattr(self, key)}; give 0 or more")
