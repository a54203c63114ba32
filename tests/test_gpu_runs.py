"""Whole runs as GPUs do them: short floats, compiled layers, memory that is short, translations.

What is not of GPUs alone is in test_end_to_end.py, whose tests run on a GPU too.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_language import Configure, learn, weights

from lightconv_mt import training
from lightconv_mt.api import Translator
from lightconv_mt.config import Device, EvalConfig, Precision, RuntimeConfig, TrainRunConfig
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.evaluation.command import evaluate
from lightconv_mt.rehearsal import rehearse
from lightconv_mt.train.loop import Trainer

pytestmark = pytest.mark.gpu

TRAINED_IN = [Precision.fp32, Precision.bf16, Precision.fp16]
MIXERS = ["attention", "dynamicconv", "lightconv"]


@pytest.fixture
def device() -> Device:
    """Not the CPU's turn."""
    return Device.cuda


def runtime(precision: Precision = Precision.fp32, **values: Any) -> RuntimeConfig:
    return RuntimeConfig(device=Device.cuda, precision=precision, **values)


def learned(config: TrainRunConfig, folder: Path) -> float:
    """Train 400 steps; BLEU of the test set."""
    learn(config)
    scores = folder / "scores.json"
    evaluation = EvalConfig(
        run_dir=[config.run_dir],
        json=str(scores),
        decode=DecodeConfig(beam_size=4),
        runtime=replace(config.runtime, compile=False),
        latency=True,
        latency_sentences=3,
    )
    assert evaluate(evaluation) == 0
    bleu: float = json.loads(scores.read_text())[0]["score"]
    return bleu


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("precision", TRAINED_IN[1:])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_toy_language_is_learned_in_short_floats(
    configure: Configure, mixer: str, precision: Precision, compiled: bool, tmp_path: Path
) -> None:
    config = configure(mixer=mixer, runtime=runtime(precision, compile=compiled))
    assert learned(config, tmp_path) > 80.0


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("precision", TRAINED_IN)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_goes_on_bit_for_bit(
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    mixer: str,
    precision: Precision,
    compiled: bool,
) -> None:
    options: dict[str, Any] = {
        "mixer": mixer,
        "steps": 7,
        "runtime": runtime(precision, compile=compiled),
        "train": {"rdrop": 2.0},
    }
    straight, stopped = (configure(run, **options) for run in ("straight", "stopped"))
    training.train(straight)
    original = Trainer._step

    def step_or_die(self: Trainer, *arguments: Any) -> None:
        if self.state.step == 4:
            raise KeyboardInterrupt
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", step_or_die)
        with pytest.raises(KeyboardInterrupt):
            training.train(stopped)
    training.train(stopped)
    ours, theirs = weights(straight), weights(stopped)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_gpu_translates_as_the_cpu_does(
    configure: Configure, mixer: str, beam_size: int, tmp_path: Path
) -> None:
    config = configure(mixer=mixer)
    learned(config, tmp_path)
    lines = Path(str(config.data.test and config.data.test.src)).read_text().splitlines()
    found = [
        Translator.load(config.run_dir, device=device).translate(
            [*lines, ""], beam_size=beam_size, nbest=beam_size
        )
        for device in ("cuda", "cpu")
    ]
    for ours, theirs in zip(*found, strict=True):
        assert ours.text == theirs.text
        assert ours.score == pytest.approx(theirs.score, abs=1e-3)
    sources, targets = lines, [each.text for each in found[1]][: len(lines)]
    scores = [
        Translator.load(config.run_dir, device=device).score(sources, targets)
        for device in ("cuda", "cpu")
    ]
    for ours, theirs in zip(*scores, strict=True):
        assert ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_short_floats_translate_nearly_alike(
    configure: Configure, precision: str, tmp_path: Path
) -> None:
    config = configure(mixer="lightconv")
    learned(config, tmp_path)
    lines = Path(str(config.data.test and config.data.test.src)).read_text().splitlines()
    wide, short = (
        Translator.load(config.run_dir, device="cuda", precision=each).translate(lines)
        for each in ("fp32", precision)
    )
    same = sum(one.text == other.text for one, other in zip(wide, short, strict=True))
    assert same >= 0.9 * len(lines)


def test_a_batch_too_large_for_memory_is_cut(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure(mixer="dynamicconv", steps=3)
    original = Trainer._backward

    def short_of_memory(self: Trainer, batches: list[Any], num_tokens: int) -> Any:
        if self.state.step == 2 and len(batches) == 1:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        return original(self, batches, num_tokens)

    monkeypatch.setattr(Trainer, "_backward", short_of_memory)
    with caplog.at_level(logging.WARNING):
        assert training.train(config) == 0
    assert "step 2: not enough memory for source" in caplog.text
    assert "trying in 2 pieces" in caplog.text


def test_a_dry_run_tells_the_memory_of_the_gpu(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(mixer="lightconv", runtime=runtime(Precision.bf16))
    assert rehearse(replace(config, dry_run=True)) == 0
    told = capsys.readouterr()
    assert "memory" in told.out
