"""What every side trains: the sizes and the recipe, the same for all of them."""

import json
import sys
from dataclasses import asdict, dataclass
from math import sqrt

MAX_TOKENS = 4096  # of a batch and side, padding included
DROPOUT, INNER_DROPOUT = 0.3, 0.1  # residual; of attention and of the convolutions' weights
LABEL_SMOOTHING = 0.1
BETAS, EPS = (0.9, 0.98), 1e-8
# A short warm-up, so that fifty updates teach something and a loss that falls wrongly is seen.
PEAK_LR, WARMUP_UPDATES, FIRST_LR = 1e-3, 30, 1e-7


@dataclass(frozen=True)
class Size:
    """The sizes of a model, the same on both sides of it."""

    layers: int
    dim: int
    ffn_dim: int
    num_heads: int
    kernel_sizes: tuple[int, ...]


SIZES = {
    "tiny": Size(4, 128, 256, 4, (3, 7, 15, 31)),
    "small": Size(6, 256, 1024, 4, (3, 7, 15, 31, 31, 31)),
}


@dataclass(frozen=True)
class Job:
    """What the process of one side is told.

    Attributes:
        model: lightconv, dynamicconv or attention.
        size: of SIZES.
        precision: fp32 or bf16.
        threads: to compute with.
        seed: of weights, masks and order.
        corpus: folder of the pieces, see `corpus.py`.
        scratch: a folder of its own.
    """

    model: str
    size: str
    precision: str
    threads: int
    seed: int
    corpus: str
    scratch: str

    def to_json(self) -> str:
        """The one argument of the process."""
        return json.dumps(asdict(self))

    @classmethod
    def of_process(cls) -> "Job":
        """What this process was told."""
        return cls(**json.loads(sys.argv[1]))


def learning_rate(done: int) -> float:
    """Linear warm-up, then the inverse square root, of the updates done before."""
    if done < WARMUP_UPDATES:
        return FIRST_LR + done * (PEAK_LR - FIRST_LR) / WARMUP_UPDATES
    return PEAK_LR * sqrt(WARMUP_UPDATES / done)
