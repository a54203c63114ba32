"""What is cut when memory runs out, how often, and what the user is told when that is in vain."""

import pytest
import torch

from lightconv_mt.data.batching import Batch, collate
from lightconv_mt.data.tokenizer import TRAINED_IDS
from lightconv_mt.errors import MemoryLimitError
from lightconv_mt.train.fitting import in_pieces_that_fit

ON_CPU = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
ERRORS = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(ON_CPU)]


def batch_of(sentences: int, length: int) -> Batch:
    return collate([([5] * length, [5] * length)] * sentences, TRAINED_IDS, TRAINED_IDS)


class Machine:
    """Runs batches of so many sentences at most, and notes what it is given."""

    def __init__(self, limit: int, error: Exception) -> None:
        self.limit, self.error = limit, error
        self.sums: list[int] = []
        self.runs = 0

    def run(self, batches: list[Batch]) -> int:
        self.runs += 1
        for batch in batches:
            if len(batch.src) > self.limit:
                raise self.error
            self.sums.append(batch.num_tokens)
        return sum(self.sums)

    def fit(self, batches: list[Batch], *, alone: bool = True) -> int:
        return in_pieces_that_fit(self.run, batches, forget=self.sums.clear, step=7, alone=alone)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("limit", "runs"), [(6, 1), (3, 2), (2, 3), (1, 4)])
def test_pieces_are_halved_until_they_fit_and_what_failed_is_forgotten(
    error: Exception, limit: int, runs: int
) -> None:
    machine = Machine(limit, error)
    batches = [batch_of(2, 3), batch_of(6, 5)]
    assert machine.fit(batches) == sum(batch.num_tokens for batch in batches)
    assert machine.runs == runs


def test_each_cut_is_logged_with_the_largest_batch(caplog: pytest.LogCaptureFixture) -> None:
    Machine(2, MemoryError()).fit([batch_of(2, 3), batch_of(6, 5)])
    lines = [record.getMessage() for record in caplog.records]
    shapes = "source (6, 5) and target (6, 5)"
    assert [line.split("(a lower")[0] for line in lines] == [
        f"step 7: not enough memory for {shapes}; trying in {pieces} pieces " for pieces in (2, 4)
    ]


def test_one_sentence_that_does_not_fit_ends_the_run() -> None:
    with pytest.raises(MemoryLimitError, match=r"step 7: .* one sentence of a batch of source \(6"):
        Machine(0, MemoryError()).fit([batch_of(6, 5)])


def test_beside_other_processes_nothing_is_cut() -> None:
    machine = Machine(3, MemoryError())
    with pytest.raises(MemoryLimitError, match=r"lower batch.max_tokens and raise train.accum"):
        machine.fit([batch_of(6, 5)], alone=False)
    assert machine.runs == 1


def test_other_errors_are_not_taken_for_too_little_memory() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Machine(0, error).fit([batch_of(6, 5)])
