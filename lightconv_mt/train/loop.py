"""The training loop, read top to bottom: accumulate, step, log, validate, save."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightconv_mt.data.batching import Batch, TokenBatcher
from lightconv_mt.errors import ConfigError, DivergenceError
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.train.checkpoint import (
    Checkpoint,
    CheckpointStore,
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
)
from lightconv_mt.train.loss import LabelSmoothedLoss
from lightconv_mt.train.monitor import Monitor
from lightconv_mt.train.optim import OptimConfig, build_optimizer, clip_gradients
from lightconv_mt.train.schedule import ScheduleConfig
from lightconv_mt.train.signals import SignalFlag

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# This many updates in a row without a finite gradient end the run.
MAX_SKIPPED_STEPS = 20


@dataclass(kw_only=True)
class LoopConfig:
    """How long to train, how often to look, and when to stop."""

    max_steps: int = 50000
    max_epochs: int | None = None
    accumulate: int = 1  # micro-batches a step
    label_smoothing: float = 0.1
    rdrop: float = 0.0  # alpha of R-Drop: two dropout passes are drawn together; doubles a step
    log_every_steps: int = 100
    validate_every_steps: int = 1000
    patience: int | None = None  # validations without a better BLEU before stopping
    num_samples: int = 3  # translations shown at every validation

    def __post_init__(self) -> None:
        for key in ("max_steps", "accumulate", "log_every_steps", "validate_every_steps"):
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
        if self.num_samples < 0:
            raise ConfigError(f"train.num_samples is {self.num_samples}; give 0 or more")


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
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    best_bleu: float = -1.0
    validations_since_best: int = 0
    loss_sum: float = 0.0  # since the last log line
    nll_sum: float = 0.0
    norm_sum: float = 0.0
    token_count: int = 0
    step_count: int = 0


class Trainer:
    """Trains one model to the end, resuming from the newest checkpoint."""

    def __init__(
        self,
        model: Seq2SeqTransformer,
        batcher: TokenBatcher,
        *,
        loop: LoopConfig,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        store: CheckpointStore,
        validate: Callable[[], Validation],
        device: torch.device,
        precision: torch.dtype,
        seed: int,
    ) -> None:
        """Join the parts.

        Args:
            model: on `device`.
            batcher: gives the batch of every (epoch, index).
            loop: steps and intervals.
            optim: optimiser settings.
            schedule: learning rate by step.
            store: where checkpoints go and come from.
            validate: scores the model as it is now.
            device: to train on.
            precision: float32, bfloat16 or float16 (with loss scaling) for the matrix products.
            seed: of dropout.
        """
        self.model, self.batcher, self.store, self.validate = model, batcher, store, validate
        self.loop, self.optim, self.schedule = loop, optim, schedule
        self.device, self.precision, self.seed = device, precision, seed
        self.loss = LabelSmoothedLoss(
            loop.label_smoothing, agreement=loop.rdrop, backend=model.backend
        )
        self.optimizer = build_optimizer(optim, model.parameters())
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
        self.state = TrainState()
        self._saved_step = 0

    def resume(self) -> bool:
        """Restore the newest checkpoint; False where there is none."""
        checkpoint = self.store.load_latest()
        if checkpoint is None:
            return False
        source = self.store.path(checkpoint.step)
        load_model_tensors(self.model, checkpoint.model, source=source)
        load_optimizer_tensors(self.optimizer, self.model, checkpoint.optimizer)
        self.scaler.load_state_dict(checkpoint.state.pop("scaler"))
        self.state = TrainState(**checkpoint.state)
        self._saved_step = self.state.step
        logger.info(
            "resumed from %s (epoch %d, batch %d)", source, self.state.epoch, self.state.index
        )
        return True

    def run(self, monitor: Monitor, signals: SignalFlag) -> TrainState:
        """Train until done or until a signal; the state is saved either way."""
        started, tokens_before = time.perf_counter(), self.state.tokens
        micro_batches = self._micro_batches()
        while not self.finished() and not signals.received:
            self._step([next(micro_batches) for _ in range(self.loop.accumulate)])
            monitor.advance()
            state = self.state
            if state.step % self.loop.log_every_steps == 0:
                elapsed = time.perf_counter() - started
                timing = {
                    "train/tokens_per_second": (state.tokens - tokens_before) / max(elapsed, 1e-9)
                }
                monitor.metrics(state.step, self._flush_log(), timing=timing)
                started, tokens_before = time.perf_counter(), state.tokens
            if state.step % self.loop.validate_every_steps == 0 or self.finished():
                self._save(best=self._validate(monitor))
                started, tokens_before = time.perf_counter(), state.tokens
            elif state.step % self.store.config.save_every_steps == 0:
                self._save()
        self._save()
        return self.state

    def finished(self) -> bool:
        """Whether one of the limits is reached."""
        loop, state = self.loop, self.state
        return (
            state.step >= loop.max_steps
            or (loop.max_epochs is not None and state.epoch >= loop.max_epochs)
            or (loop.patience is not None and state.validations_since_best >= loop.patience)
        )

    def _micro_batches(self) -> Iterator[tuple[Batch, int, int]]:
        """Batches without end from where the state stands, each with the position after it."""
        epoch, index = self.state.epoch, self.state.index
        while True:
            count = self.batcher.num_batches(epoch)
            for batch in self.batcher.iterate(epoch, index):
                index += 1
                yield batch, *((epoch, index) if index < count else (epoch + 1, 0))
            epoch, index = epoch + 1, 0

    def _step(self, micro_batches: list[tuple[Batch, int, int]]) -> None:
        """One optimiser step: gradients summed over micro-batches, divided by all target tokens."""
        state = self.state
        state.step += 1
        torch.manual_seed(self.seed * 1_000_003 + state.step)
        self.model.train()
        num_tokens = sum(batch.num_tokens for batch, _, _ in micro_batches)
        loss_sum, nll_sum = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for batch, _, _ in micro_batches:
            if self.loss.smoothing.paired:
                batch = batch.twice()
            batch = batch.to(self.device)
            with torch.autocast(
                self.device.type, self.precision, enabled=self.precision is not torch.float32
            ):
                hidden = self.model(batch.src, batch.src_mask, batch.tgt_in, batch.tgt_mask)
                value = self.loss(hidden, self.model.output_weight, batch.tgt_out, batch.tgt_mask)
            self.scaler.scale(value.loss / num_tokens).backward()
            loss_sum += value.loss.detach()
            nll_sum += value.nll
        norm = self._update(self.schedule.lr(state.step, self.optim.lr))
        state.epoch, state.index = micro_batches[-1][1:]
        state.tokens += num_tokens
        if norm is None:
            return
        state.loss_sum += float(loss_sum)
        state.nll_sum += float(nll_sum)
        state.norm_sum += norm
        state.token_count += num_tokens
        state.step_count += 1

    def _update(self, lr: float) -> float | None:
        """Apply the gradients if they are finite; returns their norm, None for a skipped update."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        norm = float(clip_gradients(self.model.parameters(), self.optim.clip_norm))
        finite = math.isfinite(norm)
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.skipped_in_a_row = 0 if finite else self.state.skipped_in_a_row + 1
        if finite:
            return norm
        self.state.skipped_steps += 1
        logger.warning("step %d: the gradient is not finite; update skipped", self.state.step)
        if self.state.skipped_in_a_row >= MAX_SKIPPED_STEPS:
            raise DivergenceError(
                f"no finite gradient in {MAX_SKIPPED_STEPS} steps up to step {self.state.step}; "
                f"lower optim.lr, lengthen schedule.warmup_steps or set optim.clip_norm"
            )
        return None

    def _flush_log(self) -> dict[str, float]:
        """Means since the last log line, in nats a target token."""
        state = self.state
        tokens, steps = max(state.token_count, 1), max(state.step_count, 1)
        metrics = {
            "train/loss": state.loss_sum / tokens,
            "train/nll": state.nll_sum / tokens,
            "train/gradient_norm": state.norm_sum / steps,
            "train/lr": self.schedule.lr(state.step, self.optim.lr),
            "train/tokens_per_step": state.token_count / steps,
            "train/epoch": state.epoch + state.index / self.batcher.num_batches(state.epoch),
            "train/skipped_steps": state.skipped_steps,
        }
        state.loss_sum = state.nll_sum = state.norm_sum = 0.0
        state.token_count = state.step_count = 0
        return metrics

    def _validate(self, monitor: Monitor) -> bool:
        """Score the model; whether it is the best so far."""
        self.model.eval()
        started = time.perf_counter()
        found = self.validate()
        state, bleu = self.state, found.metrics["valid/bleu"]
        state.validations_since_best += 1
        if bleu > state.best_bleu:
            state.best_bleu, state.validations_since_best = bleu, 0
        timing = {"valid/seconds": time.perf_counter() - started}
        monitor.metrics(
            state.step, {**found.metrics, "valid/best_bleu": state.best_bleu}, timing=timing
        )
        monitor.samples(state.step, found.samples)
        monitor.figures(state.step, found.figures)
        return state.validations_since_best == 0

    def _save(self, *, best: bool = False) -> None:
        state = self.state
        if state.step == self._saved_step:
            return
        checkpoint = Checkpoint(
            step=state.step,
            model=model_tensors(self.model),
            optimizer=optimizer_tensors(self.optimizer, self.model),
            state={**asdict(state), "scaler": self.scaler.state_dict()},
        )
        self.store.save(checkpoint, best=best)
        self._saved_step = state.step


def mean_loss(
    model: Seq2SeqTransformer, batches: Iterator[Batch], loss: LabelSmoothedLoss
) -> tuple[float, float]:
    """Mean smoothed loss and mean negative log-likelihood a target token, in nats."""
    total: Tensor = torch.zeros(2, dtype=torch.float64)
    tokens = 0
    with torch.inference_mode():
        for batch in batches:
            hidden = model(batch.src, batch.src_mask, batch.tgt_in, batch.tgt_mask)
            value = loss(hidden, model.output_weight, batch.tgt_out, batch.tgt_mask)
            total += torch.stack([value.loss, value.nll]).double().cpu()
            tokens += batch.num_tokens
    mean = total / max(tokens, 1)
    return float(mean[0]), float(mean[1])
