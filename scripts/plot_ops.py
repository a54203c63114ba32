"""Draw how long the convolutions take by sequence length, beside unfold and self-attention."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from baselines import attention, unfold
from lightconv_mt.ops import dynamicconv, lightconv
from lightconv_mt.train.memory import keep_freed_memory

CHANNELS, HEADS, WIDTH = 512, 8, 31
LENGTHS = [32, 64, 128, 256, 512, 1024, 2048]
ENOUGH_SECONDS = 0.2  # of repetitions; a longer call is made once


def main() -> None:
    """Time every candidate at every length, one thread, float32, one sentence; draw the minima."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, nargs="?", default=Path("ops.svg"))
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    centre = WIDTH // 2
    candidates: dict[str, tuple[bool, Callable[[Tensor, Tensor], Tensor]]] = {
        "LightConv": (False, lambda x, weight: lightconv(x, weight, padding_left=centre)),
        "DynamicConv": (True, lambda x, weight: dynamicconv(x, weight, padding_left=centre)),
        "unfold + bmm": (False, unfold),
        "attention": (False, attention),
    }
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for label, (dynamic, function) in candidates.items():
        times = [seconds(function, length, dynamic) for length in LENGTHS]
        for panel, taken in zip(panels, zip(*times, strict=True), strict=True):
            panel.loglog(LENGTHS, [1e3 * each for each in taken], marker=".", label=label)
    for panel, title in zip(panels, ("forward", "backward"), strict=True):
        panel.set(title=title, xlabel="positions", xticks=LENGTHS, xticklabels=LENGTHS)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("milliseconds")
    panels[0].legend()
    figure.savefig(arguments.picture)


def seconds(
    function: Callable[[Tensor, Tensor], Tensor], length: int, dynamic: bool
) -> tuple[float, float]:
    """Shortest forward and backward of one sentence."""
    x = torch.randn(1, length, CHANNELS, requires_grad=True)
    shape = (1, length, HEADS, WIDTH) if dynamic else (HEADS, WIDTH)
    weight = torch.randn(shape, requires_grad=True)
    found: list[tuple[float, float]] = []
    upstream = torch.randn_like(x)
    function(x, weight).backward(upstream)  # untimed: the first call may build the kernels
    while not found or sum(map(sum, found)) < ENOUGH_SECONDS:
        start = time.perf_counter()
        y = function(x, weight)
        middle = time.perf_counter()
        y.backward(upstream)
        found.append((middle - start, time.perf_counter() - middle))
    return min(each[0] for each in found), min(each[1] for each in found)


if __name__ == "__main__":
    main()
