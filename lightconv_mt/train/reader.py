"""Reads the batches of each step; where there is a GPU, those of the next while it computes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lightconv_mt.data.batching import Batch, TokenBatcher
from lightconv_mt.train.distributed import Distributed


@dataclass(frozen=True, kw_only=True)
class StepBatches:
    """What one step reads.

    Attributes:
        own: this process's part, on its device.
        num_tokens: real target tokens of all processes.
        epoch: of the micro-batch behind the step.
        index: of that micro-batch.
    """

    own: list[Batch]
    num_tokens: int
    epoch: int
    index: int


class StepReader:
    """Steps without end from a position on; what they are does not depend on when they are read."""

    def __init__(
        self,
        batcher: TokenBatcher,
        distributed: Distributed,
        device: torch.device,
        *,
        accumulate: int,
        epoch: int,
        index: int,
        ahead: bool,
    ) -> None:
        """Begin at a micro-batch.

        Args:
            batcher: gives the micro-batches.
            distributed: the processes that share them.
            device: where they are wanted.
            accumulate: micro-batches a step.
            epoch: of the first micro-batch.
            index: of the first micro-batch.
            ahead: whether `read_ahead` does anything: it keeps a GPU busy, and a CPU from nothing.
        """
        self._micro_batches = _micro_batches(batcher, epoch, index)
        self._distributed, self._device = distributed, device
        self._accumulate, self._ahead = accumulate, ahead
        self._waiting: StepBatches | None = None

    def next(self) -> StepBatches:
        """The next step's batches."""
        found = self._waiting or self._read()
        self._waiting = None
        return found

    def read_ahead(self) -> None:
        """Collate and send the next step's batches, to be called when the device has work."""
        if self._ahead and self._waiting is None:
            self._waiting = self._read()

    def _read(self) -> StepBatches:
        micro_batches = [next(self._micro_batches) for _ in range(self._accumulate)]
        batches = [batch for batch, _, _ in micro_batches]
        _, epoch, index = micro_batches[-1]
        return StepBatches(
            own=own_part(batches, self._distributed, self._device),
            num_tokens=sum(batch.num_tokens for batch in batches),
            epoch=epoch,
            index=index,
        )


def own_part(batches: list[Batch], distributed: Distributed, device: torch.device) -> list[Batch]:
    """What this process computes of a step's micro-batches, on its device."""
    own = distributed.share(batches)
    if device.type == "cuda":
        # A copy out of pageable memory would wait for the device.
        own = [batch.pinned() for batch in own]
    return [batch.to(device) for batch in own]


def _micro_batches(
    batcher: TokenBatcher, epoch: int, index: int
) -> Iterator[tuple[Batch, int, int]]:
    """Batches without end, each with the position after it."""
    while True:
        count = batcher.num_batches(epoch)
        for batch in batcher.iterate(epoch, index):
            index += 1
            yield batch, *((epoch, index) if index < count else (epoch + 1, 0))
        epoch, index = epoch + 1, 0
