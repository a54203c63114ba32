"""Which number format the products are made in, where `runtime.precision=auto` leaves that open."""

import logging
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from lightconv_mt.config import Precision, TrainRunConfig, load_run_config
from lightconv_mt.train.distributed import Distributed

logger = logging.getLogger(__name__)

DTYPES = {
    Precision.fp32: torch.float32,
    Precision.bf16: torch.bfloat16,
    Precision.fp16: torch.float16,
    Precision.int8: torch.int8,
}

# Activations and weights are rounded to bfloat16 before they are multiplied, which has to pay off.
WORTHWHILE = 1.25


def choose_precision(wanted: Precision, device: torch.device) -> Precision:
    """What `runtime.precision` means on a device: `auto` is bf16 where that is faster, else fp32.

    Args:
        wanted: as configured.
        device: to compute on. A GPU has instructions for bfloat16 or has not; CPUs are measured,
            since some that have them multiply faster in float32.
    """
    if wanted is not Precision.auto:
        return wanted
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision.bf16 if fast else Precision.fp32
    gain = bf16_gain()
    chosen = Precision.bf16 if gain > WORTHWHILE else Precision.fp32
    logger.info("precision: %s; bf16 multiplies %.2g times as fast here", chosen.name, gain)
    return chosen


def settle_precision(
    run_dir: Path, config: TrainRunConfig, device: torch.device, distributed: Distributed
) -> TrainRunConfig:
    """A training's configuration without `auto`: a run folder goes on as it began, on any machine.

    Args:
        run_dir: the run folder, which need not be there.
        config: of the run.
        device: to train on.
        distributed: its processes, which all get the main one's choice.
    """
    chosen, names = config.runtime.precision, [*Precision]
    if chosen is not Precision.auto:
        return config
    if distributed.is_main:
        if (run_dir / "config.yaml").exists():
            chosen = load_run_config(run_dir).runtime.precision
        chosen = choose_precision(chosen, device)
    chosen = names[distributed.of_main(names.index(chosen))]
    return replace(config, runtime=replace(config.runtime, precision=chosen))


@cache
def bf16_gain() -> float:
    """How many times as fast as in float32 one thread multiplies in bfloat16; takes under 0.3 s."""
    wide = torch.ones(512, 256), torch.ones(256, 256)
    narrow = wide[0].bfloat16(), wide[1].bfloat16()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other where other processes have the cores
    try:
        rounds = [(_seconds(*wide), _seconds(*narrow)) for _ in range(15)]
    finally:
        torch.set_num_threads(threads)
    in_float32, in_bfloat16 = (min(times) for times in zip(*rounds, strict=True))
    return in_float32 / in_bfloat16


def _seconds(x: Tensor, weight: Tensor) -> float:
    started = time.perf_counter()
    linear(x, weight)
    return time.perf_counter() - started
