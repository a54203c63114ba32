"""Steps are the same whether read ahead or not, and are read when asked to."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lightconv_mt.data.batching import Batch, collate
from lightconv_mt.data.tokenizer import TRAINED_IDS
from lightconv_mt.train.distributed import Distributed
from lightconv_mt.train.reader import StepBatches, StepReader


class Batches:
    """Three batches an epoch, told apart by their sources; counts those that were read."""

    def __init__(self) -> None:
        self.read = 0

    def num_batches(self, epoch: int) -> int:
        return 3

    def iterate(self, epoch: int, start_index: int = 0) -> Iterator[Batch]:
        for index in range(start_index, 3):
            self.read += 1
            row = [4 + epoch, 4 + index, TRAINED_IDS.eos]
            yield collate([(row, row[index:])], TRAINED_IDS, TRAINED_IDS)


def reader(
    batches: Batches, *, ahead: bool, device: str = "cpu", epoch: int = 0, index: int = 1
) -> StepReader:
    return StepReader(
        *(batches, Distributed(), torch.device(device)),
        **{"accumulate": 2, "epoch": epoch, "index": index, "ahead": ahead},
    )


def described(step: StepBatches) -> tuple[list[list[int]], int, int, int]:
    sources = [batch.src[0, :2].tolist() for batch in step.own]
    return sources, step.num_tokens, step.epoch, step.index


@pytest.mark.parametrize("ahead", [False, True])
def test_steps_follow_each_other_over_epochs_and_are_read_when_asked(ahead: bool) -> None:
    batches = Batches()
    steps = reader(batches, ahead=ahead)
    assert batches.read == 0
    found = []
    for _ in range(3):
        found.append(described(steps.next()))
        assert batches.read == 2 * len(found)
        for _ in range(2):  # once is enough
            steps.read_ahead()
        assert batches.read == 2 * (len(found) + ahead)
    assert found == [
        ([[4, 5], [4, 6]], 3, 1, 0),
        ([[5, 4], [5, 5]], 5, 1, 2),
        ([[5, 6], [6, 4]], 4, 2, 1),
    ]
    # The position behind a step is where another reader goes on.
    _, _, epoch, index = found[1]
    resumed = reader(Batches(), ahead=ahead, epoch=epoch, index=index)
    assert described(resumed.next()) == found[2]


@pytest.mark.gpu
def test_batches_lie_on_the_gpu() -> None:
    steps, plain = reader(Batches(), ahead=True, device="cuda"), reader(Batches(), ahead=False)
    for _ in range(3):
        ours, theirs = steps.next(), plain.next()
        steps.read_ahead()
        for one, other in zip(ours.own, theirs.own, strict=True):
            for name in ("src", "src_mask", "tgt_in", "tgt_out", "tgt_mask"):
                side: Tensor = getattr(one, name)
                assert side.device.type == "cuda"
                assert torch.equal(side.cpu(), getattr(other, name))
