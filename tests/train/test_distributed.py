"""Several processes compute what one does, and one that dies or hangs costs no work."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cpp_kernels import need_library
from run_digests import digests
from safetensors.torch import load_file
from torchrun import torchrun

from lightconv_mt.data.batching import Batch
from lightconv_mt.errors import ConfigError
from lightconv_mt.train.distributed import Distributed, Parallel, join_processes

STEPS = 24
# Started in place of lcmt-train: process 1 fails before a step, the first time it gets there.
FAULTY = """
import os, signal, sys
from lightconv_mt.cli import train
from lightconv_mt.train.loop import Trainer

fault, place = os.environ["FAULT"].split()
original = Trainer._step

def step(self, *arguments):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and self.state.step == int(place):
        if fault == "raise":
            raise OSError("a defect")
        os.kill(os.getpid(), getattr(signal, fault))
    original(self, *arguments)

Trainer._step = step
sys.exit(train())
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run of seconds."""
    folder, generator = tmp_path_factory.mktemp("data"), random.Random(1)
    for name, count in (("train", 200), ("valid", 9)):
        lines = [
            " ".join(generator.choices(["ba", "de", "fi", "go", "hu"], k=generator.randint(2, 6)))
            for _ in range(count)
        ]
        (folder / f"{name}.src").write_text("".join(f"{line}\n" for line in lines))
        (folder / f"{name}.tgt").write_text("".join(f"{line[::-1]}\n" for line in lines))
    return [
        *(
            "data=text",
            "data.src_lang=xx",
            "data.tgt_lang=yy",
            f"data.cache_dir={folder / 'cache'}",
        ),
        *(f"data.train.main.{side}={folder / 'train'}.{side}" for side in ("src", "tgt")),
        *(f"data.valid.{side}={folder / 'valid'}.{side}" for side in ("src", "tgt")),
        *("tokenizer=bpe_500", "tokenizer.vocab_size=280", "batch.max_tokens=200"),
        *("batch.max_length=64", "model=tiny", "model.dim=16", "model.ffn_dim=16"),
        *("model.num_heads=2", "model.encoder_layers=1", "model.decoder_layers=1"),
        *("model.mixer.encoder_kernel_sizes=[3]", "model.mixer.decoder_kernel_sizes=[3]"),
        *("model.mixer.num_heads=2", "optim.lr=0.001", "optim.clip_norm=1.0"),
        *("schedule.warmup_steps=10", f"train.max_steps={STEPS}", "train.validate_every_steps=12"),
        *("train.log_every_steps=7", "train.num_samples=0", "checkpoint.save_every_steps=5"),
        *("checkpoint.keep_last=3", "checkpoint.average_last=2", "decode=greedy"),
        *("runtime=cpu", "runtime.threads=1", "runtime.timeout_seconds=20"),
    ]


# Processes draw different dropout masks, so numbers agree without dropout only. And where a
# gradient is only rounding, as that of the keys' bias, Adam takes full steps if eps is small.
SMOOTH = [
    *("model.dropout=0", "model.attention_dropout=0", "model.mixer.weight_dropout=0"),
    "optim.eps=1e-3",
]
# Every mixer is in one model.
MIXED = [
    "model.encoder_mixers=[dynamicconv,average_attention,kernel_attention]",
    "model.decoder_mixers=[kernel_attention,conv,average_attention,depthwise,attention]",
    *("model.encoder_layers=3", "model.decoder_layers=5"),
    *(f"model.mixers.{name}.weight_dropout=0" for name in ("depthwise", "kernel_attention")),
    "model.mixers.attention.decoder_windows=3",
]


def start(
    processes: int, words: list[str], *, script: Path | None = None, restarts: int = 0, **env: str
) -> subprocess.Popen[str]:
    command = Path(sys.executable).parent / "lcmt-train"
    launcher = (
        *(sys.executable, *torchrun()),
        *(f"--nproc-per-node={processes}", f"--max-restarts={restarts}"),
    )
    return subprocess.Popen(
        [*(launcher if processes > 1 else (sys.executable,)), str(script or command), *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )


def run(processes: int, words: list[str]) -> None:
    child = start(processes, words)
    _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said


@pytest.fixture(scope="module")
def undisturbed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of a run of two processes that nothing happens to."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    run(2, [*arguments, f"run_dir={run_dir}"])
    return digests(run_dir)


def apart(ours: Path, theirs: Path, file: str = "model") -> float:
    """Largest difference of the last weights, relative to the largest weight."""
    name = f"checkpoints/step_{STEPS:08d}/{file}.safetensors"
    left, right = load_file(ours / name), load_file(theirs / name)
    assert left.keys() == right.keys()
    largest = max(float(value.abs().max()) for value in left.values())
    return max(float((left[key] - right[key]).abs().max()) for key in left) / largest


@pytest.mark.timeout(900)
def test_the_number_of_processes_changes_no_result_beyond_rounding(
    arguments: list[str], tmp_path: Path, thorough: bool, figure: Callable[[str, str], None]
) -> None:
    worst = 0.0
    cases = ((2, "1", ("fsdp", "ddp")), (1, "null", ("ddp",)))
    for accumulate, sentences, kinds in cases if thorough else cases[:1]:
        words = [
            *arguments,
            *SMOOTH,
            *MIXED,
            f"train.accumulate={accumulate}",
            f"batch.max_sentences={sentences}",
        ]
        alone = tmp_path / f"one{accumulate}"
        run(1, [*words, f"run_dir={alone}"])
        for kind in kinds:
            several = tmp_path / f"{kind}{accumulate}"
            run(2, [*words, f"run_dir={several}", f"runtime.parallel={kind}"])
            worst = max(worst, apart(alone, several))
            scores = [(each / "bleu.json").read_text() for each in (alone, several)]
            assert scores[0] == scores[1]
    figure(
        "2 processes against 1, DDP and FSDP2, float32",
        f"weights apart by {worst:.0e} of the largest after {STEPS} steps",
    )
    assert worst < 1e-6


@pytest.mark.timeout(900)
def test_a_checkpoint_of_some_processes_serves_any_other_number(
    arguments: list[str], tmp_path: Path
) -> None:
    words = [*arguments, *SMOOTH, "train.ema=0.9"]
    run(1, [*words, f"run_dir={tmp_path / 'straight'}"])
    words.append(f"run_dir={tmp_path / 'changing'}")
    run(3, [*words, "train.max_steps=8", "runtime.parallel=ddp"])
    run(1, [*words, "train.max_steps=16"])
    run(2, [*words, "runtime.parallel=fsdp"])
    for name in ("model", "ema"):
        assert apart(tmp_path / "straight", tmp_path / "changing", name) < 1e-6


@pytest.mark.timeout(900)
def test_without_an_average_no_process_leaves_before_the_best_is_scored(
    arguments: list[str], tmp_path: Path
) -> None:
    words = [*arguments, "checkpoint.average_last=0", "train.max_steps=1"]
    run(2, [*words, f"run_dir={tmp_path / 'run'}"])
    assert list(json.loads((tmp_path / "run/bleu.json").read_text())) == ["best", "decode"]


@pytest.mark.timeout(900)
def test_compiled_layers_compute_in_two_processes_what_they_do_without(
    arguments: list[str], tmp_path: Path, thorough: bool
) -> None:
    if not thorough:
        pytest.skip("compiling takes a minute of two cores; --thorough runs it")
    need_library()
    words = [*arguments, "optim.eps=1e-3", "runtime.timeout_seconds=300"]
    for compiled in ("true", "false"):
        run(2, [*words, f"run_dir={tmp_path / compiled}", f"runtime.compile={compiled}"])
    assert apart(tmp_path / "true", tmp_path / "false") < 1e-5


@pytest.mark.timeout(3600)
def test_a_process_that_fails_is_restarted_with_the_others_and_changes_no_bit(
    arguments: list[str],
    undisturbed: dict[str, str],
    tmp_path: Path,
    thorough: bool,
    figure: Callable[[str, str], None],
) -> None:
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY)
    places = range(2, 22, 2) if thorough else (13,)
    slowest, done = 0.0, 0
    signs = {"SIGKILL": "exitcode: -9", "SIGSTOP": "has lost another one", "raise": "a defect"}
    for fault in signs if thorough else ("SIGKILL",):
        for place in places:
            run_dir = tmp_path / f"{fault}{place}"
            words = [*arguments, f"run_dir={run_dir}"]
            started = time.monotonic()
            child = start(2, words, script=script, restarts=2, FAULT=f"{fault} {place}")
            _, said = child.communicate(timeout=300)
            slowest = max(slowest, time.monotonic() - started)
            assert child.returncode == 0, said
            assert signs[fault] in said
            assert digests(run_dir) == undisturbed
            done += 1
    figure(
        "one of 2 processes killed, stopped (SIGSTOP) or raising, torchrun --max-restarts",
        f"{done} times, 0 bits different at the end; {slowest:.0f} s for the slowest run",
    )


@pytest.mark.timeout(900)
def test_without_a_restart_a_lost_process_ends_the_job(
    arguments: list[str], tmp_path: Path
) -> None:
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY)
    child = start(2, [*arguments, f"run_dir={tmp_path}/run"], script=script, FAULT="SIGKILL 7")
    _, said = child.communicate(timeout=120)
    assert child.returncode != 0
    assert "step_00000005" in {path.name for path in (tmp_path / "run/checkpoints").iterdir()}, said


@pytest.mark.timeout(900)
def test_a_signal_to_the_launcher_saves_and_the_same_command_goes_on_to_the_bit(
    arguments: list[str], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    words = [*arguments, f"run_dir={tmp_path / 'stopped'}"]
    child = start(2, words)
    while not (tmp_path / "stopped/checkpoints/step_00000005/manifest.json").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=120)
    assert child.returncode != 0
    assert "the same command goes on from there" in said
    run(2, words)
    assert digests(tmp_path / "stopped") == undisturbed


@pytest.mark.timeout(300)
def test_a_folder_in_use_is_refused_in_one_line(arguments: list[str], tmp_path: Path) -> None:
    words = [*arguments, f"run_dir={tmp_path / 'run'}"]
    first = start(1, words)
    while not (tmp_path / "run/lock").exists() or not (tmp_path / "run/lock").read_text():
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    second = start(2, words)
    _, said = second.communicate(timeout=120)
    first.kill()
    first.communicate()
    assert second.returncode != 0
    assert "is being trained by process" in said
    assert "lightconv_mt/" not in said, "a traceback of ours; torchrun prints one of its own"


@pytest.mark.parametrize("size", ["2", "two"])
def test_half_of_what_torchrun_sets_is_refused(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(ConfigError, match=f"WORLD_SIZE={size} says .*RANK.*start them by torchrun"),
        join_processes(Parallel.ddp, torch.device("cpu"), 1.0),
    ):
        pass


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sizes", [(3,), (1, 7), (4, 2, 5)])
def test_shares_hold_every_sentence_once(processes: int, sizes: tuple[int, ...]) -> None:
    numbers = iter(range(100))
    batches = []
    for size in sizes:
        ids = torch.ones(size, 2, dtype=torch.int64)
        indices = [next(numbers) for _ in range(size)]
        batches.append(Batch(ids, ids > 0, ids, ids, ids > 0, 2 * size, indices))
    shares = []
    for rank in range(processes):
        distributed = Distributed()
        distributed.rank, distributed.size = rank, processes
        shares.append(distributed.share(batches))
    assert len({len(share) for share in shares}) == 1
    counted = [batch for share in shares for batch in share if batch.num_tokens]
    assert sorted(index for batch in counted for index in batch.indices) == list(range(sum(sizes)))
    assert sum(batch.num_tokens for batch in counted) == 2 * sum(sizes)
    assert all(bool(batch.tgt_mask.any()) == bool(batch.num_tokens) for batch in counted)
