"""A dry run tells what the run then is, and leaves nothing behind."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightconv_mt import cli, rehearsal, training
from lightconv_mt.config import Device, Precision, RuntimeConfig, TrainRunConfig
from lightconv_mt.data.batching import Batch, BatchConfig
from lightconv_mt.data.corpus import CorpusConfig, SourceConfig, SourceFormat
from lightconv_mt.data.tokenizer import TokenizerConfig
from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.errors import ConfigError, LcmtError
from lightconv_mt.mixers import MIXERS
from lightconv_mt.mixers.base import KernelWidthsConfig
from lightconv_mt.model.transformer import ModelConfig, Tying
from lightconv_mt.ops import Backend
from lightconv_mt.train.checkpoint import CheckpointConfig
from lightconv_mt.train.config import LoopConfig
from lightconv_mt.train.distributed import Distributed
from lightconv_mt.train.loop import Trainer
from lightconv_mt.train.optim import OptimConfig
from lightconv_mt.train.reader import StepBatches
from lightconv_mt.train.schedule import InverseSqrtConfig
from lightconv_mt.train.trial import TrialTrainer

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
Configure = Callable[..., TrainRunConfig]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "TRIAL_SECONDS", 0.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusConfig:
    folder = tmp_path_factory.mktemp("corpus")
    lines = [
        " ".join(WORDS[i // 8**place % 8] for place in range(2 + i % 7)) + f" {i}"
        for i in range(300)
    ]
    lines += [lines[0], " ".join(["alpha beta"] * 60)]

    def text(name: str, chosen: list[str]) -> SourceConfig:
        src, tgt = folder / f"{name}.x", folder / f"{name}.y"
        src.write_text("".join(f"{line}\n" for line in chosen))
        tgt.write_text("".join(f"{line.upper()}\n" for line in chosen))
        return SourceConfig(format=SourceFormat.text, src=str(src), tgt=str(tgt))

    return CorpusConfig(
        src_lang="x",
        tgt_lang="y",
        train={"main": text("train", lines)},
        valid=text("valid", lines[:5]),
        cache_dir=str(folder / "cache"),
    )


@pytest.fixture
def configure(corpus: CorpusConfig, tmp_path: Path) -> Configure:
    def build(
        mixer: str = "lightconv", *, train: Any = None, model: Any = None, **values: Any
    ) -> TrainRunConfig:
        kind = MIXERS[mixer]
        widths = {"encoder_kernel_sizes": [3], "decoder_kernel_sizes": [3]}
        sizes = {"dim": 32, "ffn_dim": 64, "num_heads": 4, "dropout": 0.1}
        layers = {"encoder_layers": 1, "decoder_layers": 1}
        defaults: dict[str, Any] = {
            "run_dir": str(tmp_path / "run"),
            "data": corpus,
            "tokenizer": TokenizerConfig(vocab_size=320),
            "batch": BatchConfig(max_tokens=512, max_length=64),
            "model": ModelConfig(
                mixer=kind(**(widths if issubclass(kind, KernelWidthsConfig) else {})),
                **{**sizes, **layers, **(model or {})},
            ),
            "optim": OptimConfig(lr=4e-3),
            "schedule": InverseSqrtConfig(warmup_steps=60),
            "train": LoopConfig(**{"validate_every_steps": 100, "num_samples": 0, **(train or {})}),
            "checkpoint": CheckpointConfig(),
            "decode": DecodeConfig(beam_size=1, max_length=5),
            "runtime": RuntimeConfig(device=Device.cpu, threads=1),
        }
        return TrainRunConfig(**{**defaults, **values})

    return build


def report(capsys: Captured, config: TrainRunConfig) -> str:
    capsys.readouterr()
    assert rehearsal.rehearse(config) == 0
    return capsys.readouterr().out


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, text
    return float(found[1].replace(",", ""))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def spy_on_steps(monkeypatch: pytest.MonkeyPatch) -> list[list[Batch]]:
    """The micro-batches of every step that is made from now on."""
    seen: list[list[Batch]] = []
    original = Trainer._step

    def step(self: Trainer, batches: StepBatches, *rest: Any) -> None:
        seen.append(batches.own)
        original(self, batches, *rest)

    monkeypatch.setattr(Trainer, "_step", step)
    return seen


def test_it_tells_what_the_run_then_does(
    configure: Configure,
    tmp_path: Path,
    capsys: Captured,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configure(
        train={"max_epochs": 2, "accumulate": 2},
        tokenizer=TokenizerConfig(vocab_size=320, sampling=0.2),
    )
    told = report(capsys, config)
    assert files(tmp_path) == {}
    assert "main: 1 pairs dropped: duplicate\n      'alpha alpha 0' | 'ALPHA ALPHA 0'" in told
    assert "1 pairs left out: longer than batch.max_length=64 tokens\n      'alpha beta" in told
    steps = spy_on_steps(monkeypatch)
    with caplog.at_level("INFO", logger="lightconv_mt"):
        assert training.train(config) == 0
    assert "data: 1 pairs left out: longer than batch.max_length=64 tokens" in caplog.messages
    tokenizers = TokenizerPair.load(tmp_path / "run", config.tokenizer)
    first = steps[0][0]
    shapes = f"source {tuple(first.src.shape)}, target {tuple(first.tgt_in.shape)}, "
    assert f"{shapes}{first.num_tokens:,} target tokens" in told
    source = first.src[0][first.src_mask[0]].tolist()
    assert f"source  {tokenizers.src.decode(source)}\n" in told
    assert " ".join(tokenizers.src.pieces(source)) in told
    assert number(r"would begin: ([\d,]+) steps", told) == len(steps)
    assert number(r"([\d.]+) an epoch, each of 2 micro-batches", told) * 2 == len(steps)
    assert "draws " in told


def test_it_goes_on_from_where_the_folder_stands_and_changes_nothing_there(
    configure: Configure,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short, more = (configure(train={"max_steps": steps}) for steps in (3, 8))
    assert training.train(short) == 0
    before = files(tmp_path)
    told = report(capsys, more)
    assert "would go on from step 3 (epoch 0, batch 3): 5 steps, up to 8" in told
    assert ": 5 steps of " in told
    assert "is finished at step 3" in report(capsys, short)
    with pytest.raises(ConfigError, match=r"was started with optim\.lr=0\.004, not 0\.001"):
        rehearsal.rehearse(configure(optim=OptimConfig(lr=1e-3)))
    assert files(tmp_path) == before
    steps = spy_on_steps(monkeypatch)
    assert training.train(more) == 0
    assert len(steps) == 5
    assert f"source {tuple(steps[0][0].src.shape)}, " in told
    (tmp_path / "run" / "bleu.json").unlink()
    assert "averaging and scoring are left" in report(capsys, more)


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_any_mixer_is_tried_and_counted_in_whole_and_in_parts(
    configure: Configure, mixer: str, capsys: Captured
) -> None:
    told = report(capsys, configure(mixer, train={"rdrop": 1.0}, model={"tying": Tying.none}))
    counts = dict(re.findall(r"^  ([a-z ]+?) +([\d,]+)$", told.split("data\n")[0], re.MULTILINE))
    sizes = {name.strip(): int(count.replace(",", "")) for name, count in counts.items()}
    parts = ("embeddings", "output projection", "encoder", "decoder")
    assert sum(sizes[name] for name in parts) == sizes["all"]
    assert sizes["embeddings"] == 2 * sizes["output projection"] == 2 * 320 * 32
    assert 0 < sizes["encoder mixers"] < sizes["encoder"]
    assert "each sentence twice for train.rdrop" in told
    assert number(r"steps of ([\d.e-]+) s", told) > 0


def test_mistakes_are_told_as_in_a_run(configure: Configure, tmp_path: Path) -> None:
    config = configure()
    none = SourceConfig(format=SourceFormat.text, src="/none/x", tgt="/none/y")
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"run_dir": "/proc/x"}, "cannot write run_dir=/proc/x"),
        ({"data": replace(config.data, valid=none)}, "cannot read /none/x"),
        ({"start_from": "/none/x"}, "/none/x has no usable tokenizer"),
        ({"tokenizer": TokenizerConfig(vocab_size=30000)}, "cannot learn 30000 pieces"),
        ({"batch": BatchConfig(max_length=2)}, "every training pair has more than"),
    ]
    for values, message in mistakes:
        said = []
        for start in (rehearsal.rehearse, training.train):
            with pytest.raises(LcmtError) as caught:
                start(replace(config, **values))
            said.append((type(caught.value), str(caught.value)))
            if start is rehearsal.rehearse:
                assert not (tmp_path / "run").exists()
        assert said[0] == said[1]
        assert message in said[0][1]
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_the_command_has_it_as_a_key(tmp_path: Path, capsys: Captured) -> None:
    assert cli.main("train", ["--help"]) == 0
    assert "dry_run=true" in capsys.readouterr().out
    words = "experiment=demo data.src_lang=xx dry_run=true"
    assert cli.main("train", [*words.split(), f"run_dir={tmp_path / 'run'}"]) == 3
    assert "no locale 'xx'" in capsys.readouterr().err
    assert files(tmp_path) == {}


def test_nothing_is_tried_where_memory_does_not_suffice(
    configure: Configure,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rehearsal, "available_memory", lambda _: 2**20)
    monkeypatch.setattr(rehearsal, "held_memory", lambda _: 0)
    monkeypatch.setattr(TrialTrainer, "pace", None)
    told = report(capsys, configure())
    assert "not measured: a step needs more memory than there is" in told
    assert number(r"available +(\d+)", told) == 1


class Trial:
    """A trainer of a toy model, without a run."""

    def __init__(self, config: TrainRunConfig, capsys: Captured) -> None:
        built: list[TrialTrainer] = []
        original = rehearsal.build_trainer

        def build(*arguments: Any, **values: Any) -> Any:
            found = original(*arguments, **values)
            built.append(found[0])
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rehearsal, "build_trainer", build)
            report(capsys, config)
        (self.trainer,) = built
        self.shapes = self.trainer.batcher.shapes(0)


def test_plans_are_the_batches(configure: Configure, capsys: Captured) -> None:
    trial = Trial(
        configure(batch=BatchConfig(max_tokens=512, max_length=64, pad_multiple=4)), capsys
    )
    made = [
        (*batch.src.shape, batch.tgt_in.shape[1], batch.num_tokens)
        for batch in trial.trainer.batcher.iterate(0)
    ]
    assert trial.shapes.tolist() == [list(row) for row in made]


@pytest.mark.parametrize(
    ("mixer", "values"),
    [
        ("lightconv", {}),
        ("attention", {"train": {"rdrop": 1.0, "ema": 0.99}}),
        (
            "dynamicconv",
            {
                "runtime": RuntimeConfig(
                    device=Device.cpu, precision=Precision.bf16, kernels=Backend.torch, threads=1
                )
            },
        ),
    ],
)
def test_memory_of_a_batch_is_known_from_less_of_it(
    configure: Configure, capsys: Captured, mixer: str, values: dict[str, Any]
) -> None:
    trial = Trial(configure(mixer, **values), capsys)
    found = trial.trainer.footprint(trial.shapes)
    rows, src, tgt = found.largest
    assert rows > 4
    kept = trial.trainer.kept_bytes(rows, src, tgt)
    assert found.parts["activations"] == pytest.approx(kept, rel=0.01)
    assert found.parts["program"] > 2**26  # torch alone
    size = 4 * sum(parameter.numel() for parameter in trial.trainer.model.parameters())
    assert found.parts["weights"] == found.parts["gradients"] == size
    averages = trial.trainer.ema
    kept_beside = sum(each.nbytes for each in averages.tensors().values()) if averages else None
    assert found.parts.get("moving average") == kept_beside
    assert kept_beside in (None, size)
    # Each layer keeps at least its input and output, in the activations' type.
    assert kept > rows * (src + tgt) * 32 * 2 * 2
    adam = sum(
        value.nbytes
        for state in trial.trainer.optimizer.state.values()
        for value in state.values()
        if value.numel() > 1
    )
    assert found.parts["optimiser state"] == adam


def test_a_step_is_as_long_as_its_micro_batches(
    configure: Configure,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With time in proportion to tokens, whatever is tried tells the mean exactly."""
    trial = Trial(configure(train={"accumulate": 3}), capsys)
    cost = trial.shapes[:, 0] * (trial.shapes[:, 1] + trial.shapes[:, 2])

    def pretend(ranked: Any, rank: int, together: int) -> Any:
        places = ranked[(rank + np.arange(together)) % len(ranked)].tolist()
        batches = [trial.trainer.batcher.batch(0, place) for place in places]
        return places, batches, float(cost[places].sum()), 7.0

    monkeypatch.setattr(trial.trainer, "_try", pretend)
    for size in (1, 2, 3):
        distributed = Distributed()
        distributed.size = size
        monkeypatch.setattr(distributed, "of_main", lambda value: value)
        monkeypatch.setattr(trial.trainer, "distributed", distributed)
        pace = trial.trainer.pace(trial.shapes, seconds=60.0)
        assert pace.step == pytest.approx(3 * cost.mean() + 7.0)
        assert pace.growth == 1.0
        assert len(pace.trials) > 10


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_process_tries_its_own_share(
    configure: Configure,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    accumulate: int,
) -> None:
    trial = Trial(configure(train={"accumulate": accumulate}), capsys)
    original, tried = trial.trainer._gradient, []

    def gradient(batches: list[Batch], num_tokens: int) -> Any:
        tried.append(sum(len(batch.src) for batch in batches))
        return original(batches, num_tokens)

    monkeypatch.setattr(trial.trainer, "_gradient", gradient)
    for rank in range(2):
        distributed = Distributed()
        distributed.rank, distributed.size = rank, 2
        monkeypatch.setattr(distributed, "total", lambda *values: list(values))
        monkeypatch.setattr(trial.trainer, "distributed", distributed)
        _, batches, _, _ = trial.trainer._try(np.arange(len(trial.shapes)), 0, accumulate)
    sentences = sum(len(batch.src) for batch in batches)
    assert sum(tried) == sentences and 0 < min(tried) < sentences
