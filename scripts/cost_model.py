"""What a training step costs, part by part: needed, possible on this machine, and measured.

    scripts/cost_model.py experiment=multi30k_lightconv runtime.threads=1
    scripts/cost_model.py experiment=wmt16_dynamicconv_base --random --source-length 30

Words are those of lcmt-train. The machine's speeds are measured first: products with weights at the
shapes that occur, and copies beyond the caches. A part's limit is the longer of its arithmetic at
those speeds and its bytes, each moved once, at that of copies. Then real steps are timed with a
clock around each part, forward and backward; the fastest is shown. All is given for one real target
token: share is limit over measured.
"""

import argparse
import logging
import platform
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch

from costs.clock import time_step
from costs.counts import PARTS, Shape, count_parts
from costs.machine import Machine
from costs.setting import Setting, from_data, from_lengths
from costs.table import Row, as_json, as_text, speeds_as_text
from lightconv_mt.assemble import start_runtime
from lightconv_mt.compose import compose
from lightconv_mt.config import REGISTERS, TrainRunConfig, to_typed
from lightconv_mt.errors import ConfigError, LcmtError
from lightconv_mt.evaluation.systems import write_text
from lightconv_mt.precision import DTYPES, choose_precision
from mixer_costs import Product

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def main() -> int:
    """Count, measure, print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", help="key=value of lcmt-train")
    parser.add_argument("--random", action="store_true", help="tokens drawn at random, no data")
    parser.add_argument("--source-length", type=int, default=25, help="with --random (25)")
    parser.add_argument("--target-length", type=int, default=25, help="with --random (25)")
    parser.add_argument("--rounds", type=int, default=5, help="steps timed (5)")
    parser.add_argument("--json", type=Path, help="a file that takes the numbers too")
    arguments = parser.parse_intermixed_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    try:
        return run(arguments)
    except LcmtError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks for."""
    lengths = arguments.source_length, arguments.target_length
    if min(*lengths, arguments.rounds) < 1:
        raise ConfigError("--source-length, --target-length and --rounds take 1 or more")
    configs = compose("train", arguments.words, root=TrainRunConfig, registers=REGISTERS)
    if len(configs) != 1:
        raise ConfigError("give the words of one run, without --multirun")
    config = to_typed(TrainRunConfig, configs[0])
    device = start_runtime(config.runtime)
    precision = DTYPES[choose_precision(config.runtime.precision, device)]
    torch.manual_seed(config.seed)
    setting = from_lengths(config, *lengths) if arguments.random else from_data(config)
    shape = Shape.of(setting.batch, twice=config.train.rdrop > 0.0)
    counts = count_parts(setting.model, shape, accumulate=config.train.accumulate)
    machine = Machine(device)
    dtypes = torch.float32, torch.bfloat16 if precision is torch.float32 else precision
    names = [NAMES[dtype] for dtype in dtypes]
    speeds = machine.speeds(counts, dtypes)
    tops = [max(column) for column in zip(*speeds.values(), strict=True)]
    seconds = time_step(
        setting.model,
        setting.batch,
        optim=config.optim,
        label_smoothing=config.train.label_smoothing,
        rdrop=config.train.rdrop,
        precision=precision,
        device=device,
        rounds=arguments.rounds,
        accumulate=config.train.accumulate,
    )
    limits = [
        {part: machine.limit(count, dtype, top_speed=top) for part, count in counts.items()}
        for dtype, top in zip(dtypes, tops, strict=True)
    ]
    rows = [
        Row(
            part=part,
            parameters=counts[part].parameters,
            forward=counts[part].multiply_adds / shape.tokens,
            both=3 * counts[part].multiply_adds / shape.tokens,
            moved=counts[part].moved(precision.itemsize) / shape.tokens,
            limits={
                name: found[part] / shape.tokens for name, found in zip(names, limits, strict=True)
            },
            measured=seconds[part] / shape.tokens,
            precision=NAMES[precision],
        )
        for part in PARTS
    ]
    show(arguments, setting, shape, machine, speeds, rows)
    return 0


def show(
    arguments: argparse.Namespace,
    setting: Setting,
    shape: Shape,
    machine: Machine,
    speeds: dict[Product, list[float]],
    rows: list[Row],
) -> None:
    """Print everything, and write it where that is asked for."""
    names = list(rows[0].limits)
    settings: dict[str, object] = {
        "date": str(date.today()),
        "machine": platform.processor() or platform.machine(),
        "device": str(machine.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "bandwidth": machine.bandwidth,
        "products": [
            {"shape": [*product], **dict(zip(names, found, strict=True))}
            for product, found in speeds.items()
        ],
        "batch": asdict(shape),
        "words": arguments.words,
    }
    print(
        f"{settings['date']}  {settings['machine']}  torch {torch.__version__}  "
        f"{settings['threads']} threads  copies {machine.bandwidth / 1e9:.1f} GB/s\n"
        f"source {tuple(setting.batch.src.shape)}, target {tuple(setting.batch.tgt_in.shape)}, "
        f"{shape.tokens:,} target tokens; {setting.origin}\n\n{speeds_as_text(speeds, names)}\n"
        f"for one target token: counts, and microseconds\n\n{as_text(rows)}",
        end="",
    )
    if arguments.json:
        write_text(str(arguments.json), as_json(rows, settings))


if __name__ == "__main__":
    sys.exit(main())
