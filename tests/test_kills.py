"""Runs killed at any moment, again and again, end as the one that was left alone."""

import contextlib
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_all_start_methods, set_start_method
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from children import assert_none_outlives, exit_code, start
from deaths import MOMENTS, die_at_moment
from run_digests import digests

from lightconv_mt import training
from lightconv_mt.config import Device, Precision, RuntimeConfig, TrainRunConfig
from lightconv_mt.data.batching import BatchConfig
from lightconv_mt.data.corpus import CorpusConfig, SourceConfig, SourceFormat
from lightconv_mt.data.tokenizer import TokenizerConfig
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.mixers import MIXERS
from lightconv_mt.model.transformer import ModelConfig
from lightconv_mt.train.checkpoint import CheckpointConfig
from lightconv_mt.train.config import LoopConfig
from lightconv_mt.train.loop import Trainer
from lightconv_mt.train.optim import OptimConfig
from lightconv_mt.train.schedule import InverseSqrtConfig

WORDS = ["ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "zu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CorpusConfig:
    folder, generator = tmp_path_factory.mktemp("data"), random.Random(1)

    def write(name: str, count: int) -> SourceConfig:
        paths = [folder / f"{name}.{side}" for side in ("src", "tgt")]
        lines = [
            " ".join(generator.choices(WORDS, k=generator.randint(2, 6))) for _ in range(count)
        ]
        paths[0].write_text("".join(f"{line}\n" for line in lines))
        paths[1].write_text("".join(f"{line[::-1]}\n" for line in lines))
        return SourceConfig(format=SourceFormat.text, src=str(paths[0]), tgt=str(paths[1]))

    return CorpusConfig(
        src_lang="xx",
        tgt_lang="yy",
        train={"toy": write("train", 300)},
        valid=write("valid", 8),
        cache_dir=str(folder / "cache"),
    )


def configure(
    data: CorpusConfig,
    run_dir: Path,
    *,
    mixer: str = "dynamicconv",
    precision: Precision = Precision.fp32,
    accumulate: int = 1,
    workers: int = 0,
    sampling: float = 0.1,
    **loop: Any,
) -> TrainRunConfig:
    widths = {"encoder_kernel_sizes": [3], "decoder_kernel_sizes": [3]}
    return TrainRunConfig(
        run_dir=str(run_dir),
        data=data,
        tokenizer=TokenizerConfig(vocab_size=300, sampling=sampling),
        batch=BatchConfig(max_tokens=256, max_length=64, num_workers=workers),
        model=ModelConfig(
            mixer=MIXERS[mixer](**({} if "attention" in mixer else widths)),
            dim=16,
            ffn_dim=16,
            num_heads=2,
            encoder_layers=1,
            decoder_layers=1,
        ),
        optim=OptimConfig(lr=1e-3),
        schedule=InverseSqrtConfig(warmup_steps=60),
        train=LoopConfig(
            accumulate=accumulate,
            **{"max_steps": 60, "validate_every_steps": 20, "log_every_steps": 7, **loop},
        ),
        checkpoint=CheckpointConfig(save_every_steps=5, keep_last=3, average_last=2),
        decode=DecodeConfig(beam_size=2, max_length_extra=5),
        runtime=RuntimeConfig(device=Device.cpu, threads=1, precision=precision),
    )


def train(config: TrainRunConfig, *before: Callable[[], None]) -> ForkServerProcess:
    """Train in a process of its own, after what else it is to do."""
    return start(*before, partial(training.train, config))


def interrupt_until_done(
    config: TrainRunConfig, signals: Iterator[signal.Signals], rng: random.Random, seconds: float
) -> list[int]:
    """Start a run, send it a signal after up to `seconds`, again and again; returns exit codes."""
    codes: list[int] = []
    while not codes or codes[-1] != 0:
        child = train(config)
        child.join(rng.uniform(0.0, seconds))
        number = next(signals, None)
        if number is not None:
            with contextlib.suppress(ProcessLookupError):  # it may have ended
                os.kill(child.pid, number)
        codes.append(exit_code(child))
        assert codes[-1] in (0, *((-number, 128 + number) if number else ()))
        assert_none_outlives(child)
    return codes


def straight_run(data: CorpusConfig, run_dir: Path) -> tuple[dict[str, str], float]:
    """Digests of a run that is left alone, and how long it takes."""
    child = train(configure(data, run_dir))
    started = time.monotonic()
    assert exit_code(child) == 0
    return digests(run_dir), time.monotonic() - started


@pytest.mark.parametrize("kind", ["kill -9", "signal"])
@pytest.mark.timeout(3600)
def test_interruptions_at_random_moments_change_no_bit(
    data: CorpusConfig,
    tmp_path: Path,
    thorough: bool,
    figure: Callable[[str, str], None],
    kind: str,
) -> None:
    expected, usual = straight_run(data, tmp_path / "straight")
    seed = 7
    rng = random.Random(seed)
    if kind == "kill -9":
        wanted, kinds, workers = 200 if thorough else 25, [signal.SIGKILL], (0,)
    else:
        wanted, workers = 100 if thorough else 12, (0, 2)
        kinds = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    codes: list[int] = []
    for run in itertools.count():
        rest = itertools.islice(itertools.cycle(kinds), max(0, wanted - len(codes) + run))
        config = configure(data, tmp_path / f"run{run}", workers=workers[run % len(workers)])
        codes += interrupt_until_done(config, rest, rng, 0.6 * usual)
        assert digests(tmp_path / f"run{run}") == expected, f"seed {seed}, run {run}"
        if sum(code != 0 for code in codes) >= wanted:
            break
    saved = sum(code > 0 for code in codes)
    name = "kill -9" if kind == "kill -9" else "SIGINT, SIGTERM, SIGUSR1 in turn"
    figure(
        f"{name} at a random moment, then the same command again",
        f"{sum(code != 0 for code in codes)} times over {run + 1} runs, {saved} of them saved "
        f"first, 0 bits different at the end (seed {seed})",
    )


def test_death_at_special_moments_changes_no_bit(
    data: CorpusConfig, tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    expected, _ = straight_run(data, tmp_path / "straight")
    for number, moment in enumerate(MOMENTS):
        config = configure(data, tmp_path / str(number))
        code = exit_code(train(config, partial(die_at_moment, moment)))
        assert code == -signal.SIGKILL, moment
        assert exit_code(train(config)) == 0, moment
        assert digests(Path(config.run_dir)) == expected, moment
    # And after the end: nothing is written at all.
    files = [path for path in Path(config.run_dir).rglob("*") if path.name != "lock"]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert exit_code(train(config)) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert len(list(Path(config.run_dir).rglob("*"))) == len(files) + 1
    names = ", ".join(MOMENTS)
    figure(f"kill -9 {names}; a start after the end", f"{len(MOMENTS) + 1}, 0 bits different")


def start_workers_by(method: str) -> None:
    # A function of its own: pickled to a child, set_start_method would set that of a copy.
    set_start_method(method, force=True)


@pytest.mark.parametrize("method", get_all_start_methods())
def test_workers_end_with_a_killed_trainer(data: CorpusConfig, tmp_path: Path, method: str) -> None:
    config = configure(data, tmp_path / "run", workers=2)
    before = (
        partial(start_workers_by, method),
        partial(die_at_moment, "in the middle of an epoch"),
    )
    child = train(config, *before)
    assert exit_code(child) == -signal.SIGKILL
    assert_none_outlives(child)


def matrix(thorough: bool) -> Iterator[dict[str, Any]]:
    cells = itertools.product(
        ("lightconv", "dynamicconv", "attention"), Precision, (1, 3), (0, 2), (0.0, 0.1)
    )
    # fp16 needs a GPU, and int8 is for translation.
    trained = (Precision.fp32, Precision.bf16)
    cells = [cell for cell in cells if cell[1] in trained]
    names = ("mixer", "precision", "accumulate", "workers", "sampling")
    for number, cell in enumerate(cells if thorough else cells[::7]):
        yield {**dict(zip(names, cell, strict=True)), "ema": 0.9 if number // 2 % 2 else 0.0}


def test_every_kind_of_run_resumes_to_the_bit(
    data: CorpusConfig,
    tmp_path: Path,
    thorough: bool,
    figure: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, cells = Trainer._step, 0
    for cells, values in enumerate(matrix(thorough), start=1):
        runs = [
            configure(
                data, tmp_path / f"{name}{cells}", max_steps=8, validate_every_steps=3, **values
            )
            for name in ("straight", "stopped")
        ]
        for config in runs:
            config.checkpoint.save_every_steps = 2
        training.train(runs[0])
        stops = [4, 6, 7]

        def step_or_die(self: Trainer, *arguments: Any, stops: list[int] = stops) -> None:
            if stops and self.state.step + 1 == stops[0]:
                stops.pop(0)
                raise KeyboardInterrupt
            original(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", step_or_die)
            for _ in range(3):
                with pytest.raises(KeyboardInterrupt):
                    training.train(runs[1])
            training.train(runs[1])
        first, second = (digests(Path(config.run_dir)) for config in runs)
        assert first == second, values
    assert cells == (48 if thorough else 7)
    figure(
        "resumed runs of each mixer, precision, accumulation, number of workers, BPE-dropout",
        f"{cells} kinds, 0 bits different",
    )


def test_twenty_resumes_of_one_step_each(
    data: CorpusConfig, tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    straight = configure(data, tmp_path / "straight", max_steps=20, validate_every_steps=100)
    training.train(straight)
    for steps in range(1, 21):
        chained = configure(data, tmp_path / "chained", max_steps=steps, validate_every_steps=100)
        chained.checkpoint.average_last = 0
        training.train(chained)
    ours, theirs = (
        digests(tmp_path / run)["checkpoints/step_00000020/model.safetensors"]
        for run in ("straight", "chained")
    )
    assert ours == theirs
    figure("resumes in a row, of one step each", "20, 0 bits different")


@pytest.mark.timeout(3600)
def test_a_long_run_needs_no_more_memory_or_files_with_time(
    data: CorpusConfig, tmp_path: Path, thorough: bool, figure: Callable[[str, str], None]
) -> None:
    steps = 20_000 if thorough else 1_000
    config = configure(
        data, tmp_path / "run", max_steps=steps, validate_every_steps=100, num_samples=0
    )
    config.checkpoint.save_every_steps = 50
    child = train(config)
    saved = tmp_path / "run" / "checkpoints"
    seen: list[tuple[int, int]] = []  # resident memory in pages, open files
    while child.is_alive():
        begun = any(saved.glob("step_*"))
        with contextlib.suppress(OSError):
            folder = Path(f"/proc/{child.pid}")
            pages = int((folder / "statm").read_text().split()[1])
            opened = len(list((folder / "fd").iterdir()))
            # Between first and last save: a start opens files, an end closes them.
            if begun and not (saved / f"step_{steps:08}").exists():
                seen.append((pages, opened))
        time.sleep(0.05)
    assert exit_code(child) == 0
    early, late = (max(pages for pages, _ in part) for part in halves(seen))
    # The fewest: a look may fall into the write of a checkpoint, which opens one more.
    files = [min(count for _, count in part) for part in halves(seen)]
    figure(
        f"a run of {steps:,} steps",
        f"memory grows by {late / early - 1:.1%} from the first half to the second, "
        f"open files {files[0]} and {files[1]}",
    )
    assert len(seen) > 50
    assert late < 1.05 * early
    assert files[0] == files[1]


def halves(values: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    return values[: len(values) // 2], values[len(values) // 2 :]
