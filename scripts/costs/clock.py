"""Where the time of a real training step goes: a clock that changes hands between the parts."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from costs.counts import (
    DECODER_FFN,
    DECODER_MIXERS,
    EMBEDDING,
    ENCODER_FFN,
    ENCODER_MIXERS,
    LOSS,
    NORMS,
    OPTIMISER,
    PARTS,
    SOURCE_ATTENTION,
)
from costs.machine import synchronize
from lightconv_mt.data.batching import Batch
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.train.loss import LabelSmoothedLoss, Objective
from lightconv_mt.train.optim import OptimConfig, build_optimizer, clip_gradients


class Clock:
    """Gives every moment to the part that owns it; between parts, that is what joins them.

    Forward, a part owns the time of its call. Backward, it does from the gradient of its output to
    that of its input; its weights' gradients come in between.
    """

    def __init__(self, device: torch.device) -> None:
        """Start with nothing measured."""
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Forget what was measured; what joins the parts owns the clock."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.owner, self.since = NORMS, time.perf_counter()

    def give_to(self, part: str) -> None:
        """Count the time since the last call for its owner; `part` is the next."""
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self.owner] += now - self.since
        self.owner, self.since = part, now

    def watch(self, module: nn.Module, part: str, *, method: str = "forward") -> None:
        """Have a module's calls count for a part, forward and backward."""
        call: Callable[..., Any] = getattr(module, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            self.give_to(part)
            # On the way back the gradient of an input ends the part, that of an output begins it.
            entered = [self._mark(each, NORMS) for each in arguments]
            found = self._mark(call(*entered, **options), part)
            self.give_to(NORMS)
            return found

        setattr(module, method, timed)

    def _mark(self, value: Any, part: str) -> Any:
        """The same tensors, whose gradients give the clock to a part as they pass."""
        if isinstance(value, tuple):
            marked = [self._mark(each, part) for each in value]
            return type(value)(*marked) if hasattr(value, "_fields") else tuple(marked)
        if isinstance(value, nn.Parameter) or not isinstance(value, Tensor):
            return value
        if not value.requires_grad:
            return value
        return _Mark.apply(value, self, part)  # type: ignore[no-untyped-call]


class _Mark(torch.autograd.Function):
    """Identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: Clock, part: str) -> Tensor:
        ctx.clock, ctx.part = clock, part
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.clock.give_to(ctx.part)
        return gradient, None, None


def watch_parts(clock: Clock, model: Seq2SeqTransformer, loss: nn.Module) -> None:
    """Put the clock around every part of a model and around its loss."""
    for table in {model.src_embedding, model.tgt_embedding}:
        clock.watch(table, EMBEDDING)
    for layer in model.encoder.layers:
        clock.watch(layer.get_submodule("mixer"), ENCODER_MIXERS)
        clock.watch(layer.get_submodule("feed_forward"), ENCODER_FFN)
    for layer in model.decoder.layers:
        clock.watch(layer.get_submodule("mixer"), DECODER_MIXERS)
        attention = layer.get_submodule("source_attention")
        clock.watch(attention, SOURCE_ATTENTION)
        clock.watch(attention, SOURCE_ATTENTION, method="project")
        clock.watch(layer.get_submodule("feed_forward"), DECODER_FFN)
    clock.watch(loss, LOSS)


def time_step(
    model: Seq2SeqTransformer,
    batch: Batch,
    *,
    optim: OptimConfig,
    label_smoothing: float,
    rdrop: float,
    precision: torch.dtype,
    device: torch.device,
    rounds: int,
    accumulate: int,
) -> dict[str, float]:
    """Seconds of each part in the fastest of several training steps on one batch.

    Args:
        model: on `device`; it is trained, and keeps the clock around its parts.
        batch: of the step.
        optim: the optimiser's settings.
        label_smoothing: of the loss.
        rdrop: of the loss; above 0 every sentence is read twice.
        precision: of the products.
        device: to train on.
        rounds: steps to time, after two to warm up.
        accumulate: micro-batches that share a step of the optimiser, of which one is made.
    """
    clock, parameters = Clock(device), list(model.parameters())
    loss = LabelSmoothedLoss(label_smoothing, agreement=rdrop, backend=model.backend)
    optimizer = build_optimizer(optim, parameters)
    objective = Objective(model.train(), loss)
    watch_parts(clock, model, loss)
    batch = (batch.twice() if rdrop else batch).to(device)
    found: list[dict[str, float]] = []
    for _ in range(2 + rounds):
        clock.restart()
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            value = objective(batch)
        (value.loss / batch.num_tokens).backward()
        clock.give_to(OPTIMISER)
        float(clip_gradients(parameters, optim.clip_norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.give_to(NORMS)
        clock.seconds[OPTIMISER] /= accumulate
        found.append(clock.seconds)
    return min(found[2:], key=lambda seconds: sum(seconds.values()))
