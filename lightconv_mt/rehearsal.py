"""`lcmt-train dry_run=true`: what a run would be, with nothing left behind in its folder."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lightconv_mt.assemble import build_trainer, start_runtime
from lightconv_mt.config import TrainRunConfig
from lightconv_mt.data.corpus import read_corpus
from lightconv_mt.data.encoded import encode_corpus
from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.precision import settle_precision
from lightconv_mt.run_folder import check_corpus, check_run, check_writable, run_tokenizers
from lightconv_mt.train.distributed import Distributed, join_processes
from lightconv_mt.train.memory import available_memory, held_memory
from lightconv_mt.train.trial import Footprint, TrialTrainer

TRIAL_SECONDS = 12.0  # for timing, beside warming up

Section = tuple[str, list[str]]


def rehearse(config: TrainRunConfig) -> int:
    """Print what a training run would be; returns the exit code.

    Mistakes are told as the run itself would, and nothing is refused that it would take.
    """
    device = start_runtime(config.runtime)
    runtime = config.runtime
    with join_processes(runtime.parallel, device, runtime.timeout_seconds) as distributed:
        if not distributed.is_main:
            logging.getLogger("lightconv_mt").setLevel(logging.ERROR)
        for title, lines in _sections(config, device, distributed):
            if distributed.is_main:
                sys.stdout.write("".join(f"{line}\n" for line in (title, *_indented(lines))))
                sys.stdout.flush()
    return 0


def _sections(
    config: TrainRunConfig, device: torch.device, distributed: Distributed
) -> Iterator[Section]:
    run_dir = Path(config.run_dir)
    config = settle_precision(run_dir, config, device, distributed)
    with distributed.main_first():
        if distributed.is_main:
            check_writable(run_dir)
            check_run(run_dir, config)
        tokenizers = run_tokenizers(run_dir, config, save=False)
        corpus = read_corpus(config.data)
        pairs = encode_corpus(corpus, tokenizers)
        check_corpus(run_dir, config, pairs.corpus_digest, save=False)
    trainer, _ = build_trainer(
        TrialTrainer,
        config,
        tokenizers=tokenizers,
        pairs=pairs,
        device=device,
        distributed=distributed,
    )
    resumed = trainer.resume()
    shapes = trainer.batcher.shapes(trainer.state.epoch)
    left = steps_left(trainer, len(shapes))
    yield "run", [_where(run_dir, trainer, left, resumed=resumed)]
    yield "parameters", _table(count_parameters(trainer.model))
    yield "data", [*corpus.report.lines(), *trainer.batcher.report()]
    if left:
        yield "first batch", [*_first_batch(trainer, tokenizers)]
    footprint = trainer.footprint(shapes)
    available = available_memory(device)
    if available is not None:
        available += held_memory(device)
    yield "memory, in MiB", _memory(footprint, available)
    yield "steps", [*_steps(trainer, shapes)]
    if not left:
        return
    if available is not None and distributed.highest(int(footprint.total > available)):
        yield (
            "time to finish",
            [
                "not measured: a step needs more memory than there is; "
                "lower batch.max_tokens and raise train.accumulate"
            ],
        )
        return
    yield "time to finish", [*_time(trainer, shapes, left)]


def steps_left(trainer: TrialTrainer, num_batches: int) -> int:
    """Steps until one of the limits is reached, but for `train.patience`.

    Args:
        trainer: with the state that it goes on from.
        num_batches: micro-batches of an epoch.
    """
    loop, state = trainer.loop, trainer.state
    if trainer.finished():
        return 0
    left = loop.max_steps - state.step
    if loop.max_epochs is not None:
        batches = (loop.max_epochs - state.epoch) * num_batches - state.index
        left = min(left, -(-batches // loop.accumulate))
    return left


def count_parameters(model: Seq2SeqTransformer) -> dict[str, int]:
    """Parameters of the whole and of its parts; a name set in is part of the one above."""

    def count(*modules: nn.Module) -> int:
        parameters = {each for module in modules for each in module.parameters()}
        return sum(each.numel() for each in parameters)

    counts = {"all": count(model), "embeddings": count(model.src_embedding, model.tgt_embedding)}
    if model.output_projection is not None:
        counts["output projection"] = model.output_projection.numel()
    for side, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        mixers = [layer.get_submodule("mixer") for layer in stack.layers]
        counts |= {side: count(stack), f"  {side} mixers": count(*mixers)}
    return counts


def _where(run_dir: Path, trainer: TrialTrainer, left: int, *, resumed: bool) -> str:
    state = trainer.state
    if not resumed:
        return f"{run_dir} would begin: {left:,} steps"
    where = f"step {state.step:,} (epoch {state.epoch}, batch {state.index})"
    if not left and (run_dir / "bleu.json").exists():
        return f"{run_dir} is finished at {where}; nothing to do"
    if not left:
        return f"{run_dir} is trained to its end at {where}; averaging and scoring are left"
    return f"{run_dir} would go on from {where}: {left:,} steps, up to {state.step + left:,}"


def _first_batch(trainer: TrialTrainer, tokenizers: TokenizerPair) -> Iterator[str]:
    state = trainer.state
    batch = trainer.batcher.batch(state.epoch, state.index)
    twice = ", each sentence twice for train.rdrop" if trainer.paired else ""
    yield (
        f"source {tuple(batch.src.shape)}, target {tuple(batch.tgt_out.shape)}, "
        f"{batch.num_tokens:,} target tokens{twice}"
    )
    for name, tokenizer, ids, mask in (
        ("source", tokenizers.src, batch.src[0], batch.src_mask[0]),
        ("target", tokenizers.tgt, batch.tgt_out[0], batch.tgt_mask[0]),
    ):
        row = ids[mask].tolist()
        yield f"{name}  {tokenizer.decode(row)}"
        yield f"        {' '.join(tokenizer.pieces(row))}"


def _memory(footprint: Footprint, available: int | None) -> list[str]:
    sentences, src, tgt = footprint.largest
    counts = {name: round(size / 2**20) for name, size in footprint.parts.items()}
    counts["all"] = round(footprint.total / 2**20)
    if available is not None:
        counts["available"] = round(available / 2**20)
    batch = f"activations are those of the largest batch, {sentences} x ({src} + {tgt}) tokens"
    return [*_table(counts), batch]


def _steps(trainer: TrialTrainer, shapes: NDArray[np.int64]) -> Iterator[str]:
    accumulate = trainer.loop.accumulate
    batches = "1 micro-batch" if accumulate == 1 else f"{accumulate:,} micro-batches"
    yield f"{_short(len(shapes) / accumulate)} an epoch, each of {batches}"
    real, padded = float(shapes[:, 3].sum()), float((shapes[:, 0] * shapes[:, 2]).sum())
    yield (
        f"{real / len(shapes) * accumulate:,.0f} target tokens a step on average, "
        f"and {1 - real / padded:.1%} padding beside them"
    )


def _time(trainer: TrialTrainer, shapes: NDArray[np.int64], left: int) -> Iterator[str]:
    pace = trainer.pace(shapes, seconds=TRIAL_SECONDS)
    step, every = trainer.state.step, trainer.loop.validate_every_steps
    validations = (step + left) // every - step // every + ((step + left) % every > 0)
    yield (
        f"{_duration(left * pace.step)}: {left:,} steps of {pace.step:.3g} s, "
        f"{pace.update:.2g} s of it the update"
    )
    yield (
        f"measured on {len(pace.trials)} batches of different sizes, "
        f"{min(pace.trials):.3g} to {max(pace.trials):.3g} s forward and backward"
    )
    yield f"not counted: {validations:,} validations, saving, the averaging and scoring at the end"
    if trainer.loop.patience is not None:
        yield f"it may end sooner, by train.patience={trainer.loop.patience}"
    if trainer.batcher.sampling:
        yield f"tokenizer.sampling draws {pace.growth - 1:.1%} more target tokens than planned"


def _table(counts: dict[str, int]) -> list[str]:
    shown = {name: f"{count:,}" for name, count in counts.items()}
    width, right = (max(map(len, side)) for side in (shown.keys(), shown.values()))
    return [f"{name:<{width}}  {count:>{right}}" for name, count in shown.items()]


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _short(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0") if value >= 1 else f"{value:.2g}"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 1:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes:.0f} min"
    if hours < 48:
        return f"{int(hours)} h {int(minutes) % 60} min"
    return f"{hours / 24:.1f} days"
