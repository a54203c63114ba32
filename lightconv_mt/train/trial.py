"""A trainer for trying steps out: how long they take, and how much memory one needs."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightconv_mt.data.batching import Batch
from lightconv_mt.ops.dispatch import Backend
from lightconv_mt.train.compile import example_batch
from lightconv_mt.train.loop import Trainer
from lightconv_mt.train.loss import LabelSmoothedLoss, Objective, chunk_rows
from lightconv_mt.train.memory import held_memory
from lightconv_mt.train.reader import own_part

# Micro-batches tried at most; of many shapes, since the fewest tokens take the least time.
MOST_TRIALS = 24


@dataclass(frozen=True)
class Pace:
    """How fast steps were.

    Attributes:
        trials: seconds of each forward and backward pass that was tried, its batch's making
            included where no worker makes batches.
        update: seconds of an update of the parameters.
        step: seconds of a step with micro-batches as they are on average.
        growth: real target tokens in what was tried, over those planned.
    """

    trials: list[float]
    update: float
    step: float
    growth: float


class Footprint(NamedTuple):
    """Bytes that a step needs in this process.

    Attributes:
        parts: by name.
        largest: sentences, source and target width of the micro-batch that needs most.
    """

    parts: dict[str, int]
    largest: tuple[int, int, int]

    @property
    def total(self) -> int:
        """All of it; activations go while gradients come, so the peak is a little lower."""
        return sum(self.parts.values())


class TrialTrainer(Trainer):
    """Makes steps out of turn: the model changes, what a run has on disk does not."""

    def footprint(self, shapes: NDArray[np.int64]) -> Footprint:
        """What a step with the largest micro-batch needs.

        Args:
            shapes: of the micro-batches, see `TokenBatcher.shapes`.
        """
        sharded = self.distributed.size if self.distributed.holds_parts else 1
        weights = sum(each.numel() * each.element_size() for each in self.model.parameters())
        rows, src, tgt = shapes[:, 0], shapes[:, 1], shapes[:, 2]
        # Activations grow with the tokens of a batch, those of attention with their squares.
        candidates = {
            int((rows * (src + tgt)).argmax()),
            int((rows * (src * src + tgt * tgt + src * tgt)).argmax()),
        }
        kept = {
            (int(rows[place]), int(src[place]), int(tgt[place])): self._kept_by(
                *self._shared(*shapes[place, :3].tolist())
            )
            for place in candidates
        }
        largest = max(kept, key=lambda shape: kept[shape])
        parts = {
            "weights": weights // sharded,
            "gradients": weights // sharded,
            "optimiser state": 2 * weights // sharded,
            "activations": kept[largest],
            "loss chunk": self._chunk_bytes(*self._shared(*largest)),
        }
        if self.ema is not None:
            parts["moving average"] = weights // sharded
        if self.distributed.holds_parts:
            parts["copy for validation"] = weights
        if self.device.type == "cpu":  # small passes have been made: libraries are loaded
            held = ("weights", "moving average", "copy for validation")
            own = sum(parts.get(name, 0) for name in held)
            parts["program"] = max(0, held_memory(self.device) - own)
        return Footprint(parts, largest)

    def pace(self, shapes: NDArray[np.int64], *, seconds: float) -> Pace:
        """Try micro-batches of the state's epoch, of all sizes, until the time is up.

        Args:
            shapes: of the epoch's micro-batches, see `TokenBatcher.shapes`.
            seconds: to spend on it, beside warming up; two trials are made in any case.
        """
        cost = shapes[:, 0] * (shapes[:, 1] + shapes[:, 2])
        ranked = cost.argsort(kind="stable")
        # As a step shares them: whole micro-batches if they can be dealt out, else each in parts.
        size, accumulate = self.distributed.size, self.loop.accumulate
        together = size if accumulate % size == 0 else 1
        started = time.perf_counter()
        for rank in (len(ranked) - 1, len(ranked) // 2):  # the largest, for the allocator
            self._try(ranked, rank, together)
            if self._is_over(started, seconds):
                break
        trials, updates, planned, drawn, tried = [], [], 0, 0, 0
        started = time.perf_counter()
        for share in _spread(MOST_TRIALS):
            places, batches, gradient, update = self._try(
                ranked, int(share * len(ranked)), together
            )
            trials.append(gradient)
            updates.append(update)
            tried += int(cost[places].sum())
            planned += int(shapes[places, 3].sum())
            drawn += sum(batch.num_tokens for batch in batches)
            if len(trials) > 1 and self._is_over(started, seconds):
                break
        step = sum(trials) / tried * float(cost.mean()) * accumulate + median(updates)
        return Pace(trials, median(updates), step, drawn / planned)

    def _try(
        self, ranked: NDArray[np.int64], rank: int, together: int
    ) -> tuple[list[int], list[Batch], float, float]:
        """One pass and update: places of the batches, these, and seconds of either."""
        places = ranked[(rank + np.arange(together)) % len(ranked)].tolist()
        started = time.perf_counter()
        batches = [self.batcher.batch(self.state.epoch, place) for place in places]
        if self.batcher.config.num_workers:  # which make them meanwhile
            started = time.perf_counter()
        self.model.train()
        own = own_part(batches, self.distributed, self.device)
        sums = self._gradient(own, sum(batch.num_tokens for batch in batches))
        self.distributed.total(*sums)  # waits for the device, as in a step
        middle = time.perf_counter()
        self._update(self.schedule.lr(self.state.step, self.optim.lr))
        return places, batches, middle - started, time.perf_counter() - middle

    def _is_over(self, started: float, seconds: float) -> bool:
        """Whether the main process finds that the time is up."""
        return bool(self.distributed.of_main(int(time.perf_counter() - started > seconds)))

    def _shared(self, rows: int, src: int, tgt: int) -> tuple[int, int, int]:
        """What a process gets of a micro-batch."""
        size = self.distributed.size
        return (rows if self.loop.accumulate % size == 0 else -(-rows // size)), src, tgt

    def _kept_by(self, rows: int, src: int, tgt: int) -> int:
        """Bytes that the forward pass keeps for the backward pass of so many sentences.

        Two small batches tell what a sentence adds, so that one that does not fit is weighed too.
        """
        few, more = (self.kept_bytes(count, src, tgt) for count in (2, 4))
        return few + (more - few) // 2 * (rows - 2)

    def kept_bytes(self, rows: int, src: int, tgt: int) -> int:
        """Bytes that the forward pass of a batch keeps, parameters not among them."""
        model = self.measured or self.model
        model.train()
        loss = LabelSmoothedLoss(
            self.loop.label_smoothing, agreement=self.loop.rdrop, backend=model.backend
        )
        batch = example_batch(self.device, (rows, src, tgt))
        if self.paired:
            batch = batch.twice()
        parameters = {each.untyped_storage().data_ptr() for each in model.parameters()}
        kept: dict[int, int] = {}

        def weigh(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        enabled = self.precision is not torch.float32
        with (
            torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor),
            torch.autocast(self.device.type, self.precision, enabled=enabled),
        ):
            value = Objective(model, loss)(batch)
        found = sum(kept.values())  # while `value` holds them all, no place is used twice
        value.loss.backward()
        model.zero_grad(set_to_none=True)
        return found

    def _chunk_bytes(self, rows: int, _: int, tgt: int) -> int:
        """Bytes of the loss's temporary tensors: logits and the gradient of the projection."""
        vocab_size, dim = self.model.output_weight.shape
        narrow = self.precision is not torch.float32
        width = 2 if narrow else 4
        # Plain torch holds log-probabilities, probabilities and slopes beside them, in float32.
        a_logit = width if self.model.backend is Backend.native else width + 12
        logits = (
            min(chunk_rows(vocab_size, device=self.device), rows * tgt * (2 if self.paired else 1))
            * vocab_size
            * a_logit
        )
        return logits + vocab_size * dim * width * (2 if narrow else 1)


def _spread(count: int) -> Iterator[float]:
    """Shares in (0, 1), each beginning of them spread evenly: 1/2, 1/4, 3/4, 1/8, 5/8, ..."""
    for number in range(1, count + 1):
        share, half = 0.0, 0.5
        while number:
            share += half * (number % 2)
            number, half = number // 2, half / 2
        yield share
