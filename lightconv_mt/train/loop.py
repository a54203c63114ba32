"""The training loop, read top to bottom: accumulate, step, log, validate, save."""

import logging
import math
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, fields

import torch
from torch import Tensor

from lightconv_mt.data.batching import Batch, TokenBatcher
from lightconv_mt.errors import CheckpointError, DivergenceError
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.train.checkpoint import (
    Checkpoint,
    CheckpointStore,
    OnFailure,
    copy_parameters,
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
)
from lightconv_mt.train.compile import compile_layers, example_batch
from lightconv_mt.train.config import LoopConfig
from lightconv_mt.train.distributed import Distributed
from lightconv_mt.train.ema import MovingAverage
from lightconv_mt.train.fitting import in_pieces_that_fit
from lightconv_mt.train.loss import LabelSmoothedLoss, Objective
from lightconv_mt.train.memory import give_back_freed_memory
from lightconv_mt.train.monitor import SilentMonitor
from lightconv_mt.train.optim import OptimConfig, build_optimizer, clip_gradients
from lightconv_mt.train.reader import StepBatches, StepReader
from lightconv_mt.train.schedule import ScheduleConfig
from lightconv_mt.train.signals import InterruptedWorkError, SignalFlag
from lightconv_mt.train.state import TrainState, Validation

logger = logging.getLogger(__name__)

# Taking the memory anew costs most of the time of a step.
GIVE_BACK_EVERY_STEPS = 100
# A norm this many deviations above its running mean is logged; the mean looks back some 100 steps.
SPIKE_DEVIATIONS, NORM_MEMORY = 6.0, 0.99


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
        distributed: Distributed,
        measured: Seq2SeqTransformer | None = None,
        compiled: bool = False,
    ) -> None:
        """Join the parts.

        Args:
            model: on `device`, equal in all processes.
            batcher: gives the batch of every (epoch, index).
            loop: steps and intervals.
            optim: optimiser settings.
            schedule: learning rate by step.
            store: where checkpoints go and come from.
            validate: scores the model as it is now.
            device: to train on.
            precision: float32, bfloat16 or float16 (with loss scaling) for the matrix products.
            seed: of dropout.
            distributed: the processes that train this model together.
            measured: another model with the same weights, which `validate` reads; needed for a
                moving average, and where processes hold parts of `model`.
            compiled: whether `run` has the layers compiled first.
        """
        self.model, self.batcher, self.store, self.validate = model, batcher, store, validate
        self.loop, self.optim, self.schedule = loop, optim, schedule
        self.device, self.precision, self.seed = device, precision, seed
        self.distributed, self.measured, self.compiled = distributed, measured, compiled
        loss = LabelSmoothedLoss(loop.label_smoothing, agreement=loop.rdrop, backend=model.backend)
        self.paired = loss.smoothing.paired
        layers = [*model.encoder.layers, *model.decoder.layers]
        self.objective = distributed.spread(Objective(model, loss), layers, device)
        self.optimizer = build_optimizer(optim, model.parameters())
        self.ema: MovingAverage | None = None
        if loop.ema:
            assert measured is not None
            self.ema = MovingAverage(model, measured, decay=loop.ema)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
        self.state = TrainState()
        self._restart_clock()

    def resume(self) -> bool:
        """Restore the newest checkpoint; False where there is none.

        Raises:
            CheckpointError: when all are damaged, or made by another version.
        """
        checkpoint = self.store.load_latest() if self.distributed.is_main else None
        step = self.distributed.of_main(checkpoint.step if checkpoint else -1)
        if step < 0:
            return False
        checkpoint = checkpoint or self.store.load(step)
        source = self.store.path(checkpoint.step)
        load_model_tensors(self.model, checkpoint.model, source=source)
        load_optimizer_tensors(self.optimizer, self.model, checkpoint.optimizer)
        if self.ema is not None:
            self.ema.load(checkpoint.ema, source=source)
        state = dict(checkpoint.state)
        scaler = state.pop("scaler", None)
        strange = state.keys() ^ {each.name for each in fields(TrainState)}
        if strange or not isinstance(scaler, dict):
            raise CheckpointError(
                f"{source} was made by another version of this program, which differs by "
                f"{', '.join(sorted(strange)) or 'scaler'}; choose a new run_dir"
            )
        self.scaler.load_state_dict(scaler)
        self.state = TrainState(**state)
        logger.info(
            "resumed from %s (epoch %d, batch %d)", source, self.state.epoch, self.state.index
        )
        return True

    def run(self, monitor: SilentMonitor, signals: SignalFlag) -> TrainState:
        """Train until done or until a signal; the state is saved either way."""
        if self.compiled and not self.finished():
            compile_layers(self.model, self._backward_once)
        self._restart_clock()
        reader = StepReader(
            *(self.batcher, self.distributed, self.device),
            accumulate=self.loop.accumulate,
            epoch=self.state.epoch,
            index=self.state.index,
            ahead=self.device.type == "cuda",
        )
        while not self._stop_is_asked(signals):
            if self._validation_is_due():
                try:
                    # Others would wait in vain for a process that leaves its validation.
                    alone = self.distributed.is_alone
                    with signals.interrupting() if alone else nullcontext():
                        found = self._measure()
                except InterruptedWorkError:
                    break
                self._record(*found, monitor)
                self._save(monitor)
                self._restart_clock()
            if self.finished():
                break
            self._step(reader.next(), reader.read_ahead, monitor)
            state = self.state
            monitor.advance()
            if state.step % GIVE_BACK_EVERY_STEPS == 0:
                give_back_freed_memory()
            if state.step % self.loop.log_every_steps == 0:
                elapsed = time.perf_counter() - self._started
                timing = {
                    "train/tokens_per_second": (state.tokens - self._tokens_before)
                    / max(elapsed, 1e-9)
                }
                monitor.metrics(state.step, self._flush_log(), timing=timing)
                self._restart_clock()
            if self._saves_at(state.step) and not self._validation_is_due():
                self._save(monitor)
        if self.state.step:  # a signal may have come before the first one
            self._save(monitor, last=True)
        return self.state

    def finished(self) -> bool:
        """Whether one of the limits is reached."""
        loop, state = self.loop, self.state
        return (
            state.step >= loop.max_steps
            or (loop.max_epochs is not None and state.epoch >= loop.max_epochs)
            or (loop.patience is not None and state.validations_since_best >= loop.patience)
        )

    def _step(
        self, batches: StepBatches, while_it_runs: Callable[[], None], monitor: SilentMonitor
    ) -> None:
        """One optimiser step: gradients summed over micro-batches, divided by all target tokens."""
        state = self.state
        state.step += 1
        self.model.train()
        sums = self._gradient(batches.own, batches.num_tokens)
        while_it_runs()  # what follows waits for the device
        loss_sum, nll_sum = self.distributed.total(*sums)
        norm = self._update(self.schedule.lr(state.step - 1, self.optim.lr))
        state.epoch, state.index = batches.epoch, batches.index
        state.tokens += batches.num_tokens
        if norm is None:
            if state.skipped_in_a_row >= self.loop.max_skipped_steps:
                self._rewind(monitor)
            return
        self._watch(norm)
        state.loss_sum += loss_sum
        state.nll_sum += nll_sum
        state.norm_sum += norm
        state.token_count += batches.num_tokens
        state.step_count += 1

    def _gradient(self, batches: list[Batch], num_tokens: int) -> tuple[Tensor, Tensor]:
        """Gradient of the mean loss, and the sums of loss and likelihood."""
        return in_pieces_that_fit(
            lambda parts: self._backward(parts, num_tokens),
            batches,
            forget=lambda: self.optimizer.zero_grad(set_to_none=True),
            step=self.state.step,
            alone=self.distributed.is_alone,
        )

    def _backward(self, batches: list[Batch], num_tokens: int) -> tuple[Tensor, Tensor]:
        """Add the gradient of every batch; the sums of loss and likelihood."""
        rank = self.distributed.rank
        torch.manual_seed(self.seed * 1_000_003 + self.state.step + (rank << 40))
        loss_sum, nll_sum = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for place, batch in enumerate(batches, start=1):
            if self.paired:
                batch = batch.twice()
            with self.distributed.accumulating(self.objective, more=place < len(batches)):
                with torch.autocast(
                    self.device.type, self.precision, enabled=self.precision is not torch.float32
                ):
                    value = self.objective(batch)
                # Gradients of several processes are averaged, and should be summed.
                loss = value.loss * (self.distributed.size / num_tokens)
                self.scaler.scale(loss).backward()
            loss_sum += value.loss.detach()
            nll_sum += value.nll
        return loss_sum, nll_sum

    def _backward_once(self) -> None:
        """A step's work on a batch that is always the same, to no effect."""
        self.model.train()
        batch = example_batch(self.device)
        self._backward([batch], batch.num_tokens)
        self.optimizer.zero_grad(set_to_none=True)

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
            if self.ema is not None:
                self.ema.update(self.state.step)
            return norm
        self.state.skipped_steps += 1
        logger.warning("step %d: the gradient is not finite; update skipped", self.state.step)
        return None

    def _rewind(self, monitor: SilentMonitor) -> None:
        """Take up the last checkpoint again, going on with the data after this step's.

        Raises:
            DivergenceError: when that was done often enough, or there is no checkpoint.
        """
        failed = self.state
        why = f"no finite gradient in {failed.skipped_in_a_row} steps up to step {failed.step}"
        if failed.rewinds >= self.loop.max_rewinds or not self.resume():
            raise DivergenceError(
                f"{why}, after {failed.rewinds} returns to a checkpoint; "
                f"lower optim.lr, lengthen schedule.warmup_steps or set optim.clip_norm"
            )
        state = self.state
        state.epoch, state.index, state.tokens = failed.epoch, failed.index, failed.tokens
        state.rewinds, state.skipped_steps = failed.rewinds + 1, failed.skipped_steps
        state.skipped_in_a_row = 0  # of the checkpoint, which may lie among the failed steps
        monitor.rewind(state.metric_lines)
        self._restart_clock()
        logger.warning("%s; going on from step %d, behind that data", why, state.step)

    def _watch(self, norm: float) -> None:
        """Log a gradient whose norm stands out from those before, warm-up excepted."""
        state = self.state
        spread = math.sqrt(state.norm_variance)
        seen = state.step > 1 / (1 - NORM_MEMORY)
        if seen and norm > state.norm_mean + SPIKE_DEVIATIONS * spread:
            logger.warning(
                "step %d: gradient norm %.3g, usually %.3g +- %.2g",
                *(state.step, norm, state.norm_mean, spread),
            )
        memory = NORM_MEMORY if seen else 1 - 1 / state.step
        apart = norm - state.norm_mean
        state.norm_mean += (1 - memory) * apart
        state.norm_variance = memory * (state.norm_variance + (1 - memory) * apart * apart)

    def _flush_log(self) -> dict[str, float]:
        """Means since the last log line, in nats a target token; none where no step was taken."""
        state = self.state
        means = {}
        if state.step_count:
            means = {
                "train/loss": state.loss_sum / state.token_count,
                "train/nll": state.nll_sum / state.token_count,
                "train/gradient_norm": state.norm_sum / state.step_count,
            }
        metrics = {
            **means,
            "train/lr": self.schedule.lr(state.step - 1, self.optim.lr),
            "train/tokens_per_step": state.token_count / max(state.step_count, 1),
            "train/epoch": state.epoch + state.index / self.batcher.num_batches(state.epoch),
            "train/skipped_steps": state.skipped_steps,
        }
        state.loss_sum = state.nll_sum = state.norm_sum = 0.0
        state.token_count = state.step_count = 0
        return metrics

    def _validation_is_due(self) -> bool:
        state = self.state
        return state.validated_step < state.step and (
            state.step % self.loop.validate_every_steps == 0 or self.finished()
        )

    def _saves_at(self, step: int) -> bool:
        """Whether a run that is not interrupted saves at a step."""
        intervals = self.store.config.save_every_steps, self.loop.validate_every_steps
        return any(step % interval == 0 for interval in intervals) or (
            step == self.state.step and self.finished()
        )

    def _stop_is_asked(self, signals: SignalFlag) -> bool:
        """Whether any process got a signal; all take it for theirs."""
        number = self.distributed.highest(signals.received or 0)
        if number:
            signals.received = signal.Signals(number)
        return bool(number)

    def _measure(self) -> tuple[Validation, float]:
        """Score the model; also how many seconds that took."""
        started = time.perf_counter()
        if self.measured is None:
            self.model.eval()
        elif self.ema is not None:
            self.ema.show().eval()
        else:
            copy_parameters(self.model, self.measured.eval())
        return self.validate(), time.perf_counter() - started

    def _record(self, found: Validation, seconds: float, monitor: SilentMonitor) -> None:
        """Note what a validation found."""
        state, bleu = self.state, found.metrics["valid/bleu"]
        state.validated_step = state.step
        state.validations_since_best += 1
        if bleu > state.best_bleu:
            state.best_bleu, state.best_step, state.validations_since_best = bleu, state.step, 0
        metrics = {**found.metrics, "valid/best_bleu": state.best_bleu}
        monitor.metrics(state.step, metrics, timing={"valid/seconds": seconds})
        monitor.samples(state.step, found.samples)
        monitor.figures(state.step, found.figures)

    def _save(self, monitor: SilentMonitor, *, last: bool = False) -> None:
        """Save the state, unless it is saved as it is; failing ends the run if so configured."""
        state = self.state
        state.metric_lines = monitor.lines
        weights = model_tensors(self.model)
        moments = optimizer_tensors(self.optimizer, self.model)
        averages = self.ema.tensors() if self.ema is not None else {}
        if not self.distributed.is_main:
            return
        checkpoint = Checkpoint(
            step=state.step,
            model=weights,
            optimizer=moments,
            state={**asdict(state), "scaler": self.scaler.state_dict()},
            ema=averages,
        )
        try:
            self.store.save(checkpoint, best_step=state.best_step, planned=self._saves_at)
        except CheckpointError as error:
            if last or self.store.config.on_failure is OnFailure.stop:
                raise
            logger.warning("%s; going on, as checkpoint.on_failure=go_on asks", error)

    def _restart_clock(self) -> None:
        self._started, self._tokens_before = time.perf_counter(), self.state.tokens
