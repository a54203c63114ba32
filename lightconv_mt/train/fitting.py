"""Cuts the batches of a step that do not fit in memory into pieces that do."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from lightconv_mt.data.batching import Batch
from lightconv_mt.errors import MemoryLimitError, is_out_of_memory

Found = TypeVar("Found")

logger = logging.getLogger(__name__)


def in_pieces_that_fit(
    run: Callable[[list[Batch]], Found],
    batches: list[Batch],
    *,
    forget: Callable[[], None],
    step: int,
    alone: bool,
) -> Found:
    """Run batches, each cut into twice as many pieces as often as there is not enough memory.

    Args:
        run: adds up the gradient of batches; those of pieces add up to that of the whole.
        batches: on their device.
        forget: drops what a run that failed has added up.
        step: number of the step, for messages.
        alone: whether no other process waits for the same exchanges, which pieces would add to.

    Returns:
        What the run returned that had enough memory.

    Raises:
        MemoryLimitError: when single sentences do not fit either, or batches when not alone.
    """
    pieces = 1
    while True:
        try:
            return run([part for each in batches for part in each.split(pieces)])
        except (MemoryError, RuntimeError) as error:  # torch has an error of its own for GPUs only
            if not is_out_of_memory(error):
                raise
        # Out of the handler, so that the error holds no tensor any more.
        forget()
        largest = max(batches, key=lambda batch: batch.tgt_in.numel() + batch.src.numel())
        if largest.src.is_cuda:
            torch.cuda.empty_cache()
        shapes = f"source {tuple(largest.src.shape)} and target {tuple(largest.tgt_in.shape)}"
        if not alone:
            raise MemoryLimitError(
                f"step {step}: not enough memory for a batch of {shapes}; "
                f"lower batch.max_tokens and raise train.accumulate"
            )
        if pieces >= max(len(batch.src) for batch in batches):
            raise MemoryLimitError(
                f"step {step}: not enough memory for one sentence of a batch of {shapes}; "
                f"lower batch.max_length"
            )
        pieces *= 2
        logger.warning(
            "step %d: not enough memory for %s; trying in %d pieces (a lower batch.max_tokens "
            "avoids this)",
            *(step, shapes, pieces),
        )
