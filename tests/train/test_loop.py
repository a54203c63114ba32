"""The loop when things go wrong: signals, numbers that are not finite, too little memory, disks."""

import copy
import hashlib
import json
import math
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightconv_mt import whole_files
from lightconv_mt.data.batching import collate
from lightconv_mt.data.tokenizer import TRAINED_IDS
from lightconv_mt.errors import CheckpointError, DivergenceError
from lightconv_mt.mixers import MIXERS
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer
from lightconv_mt.ops.dispatch import Backend
from lightconv_mt.train.checkpoint import (
    CheckpointConfig,
    CheckpointStore,
    OnFailure,
    model_tensors,
)
from lightconv_mt.train.config import LoopConfig
from lightconv_mt.train.distributed import Distributed
from lightconv_mt.train.loop import Trainer
from lightconv_mt.train.monitor import Monitor
from lightconv_mt.train.optim import OptimConfig
from lightconv_mt.train.schedule import CosineConfig, InverseSqrtConfig
from lightconv_mt.train.signals import SignalFlag
from lightconv_mt.train.state import Validation

VOCAB = 20


class Batches:
    """Five batches an epoch, a pure function of (epoch, index)."""

    def num_batches(self, epoch: int) -> int:
        return 5

    def iterate(self, epoch: int, start_index: int = 0) -> Any:
        for index in range(start_index, 5):
            generator = torch.Generator().manual_seed(epoch * 5 + index)

            def words(count: int, generator: torch.Generator = generator) -> list[int]:
                return torch.randint(4, VOCAB, (count,), generator=generator).tolist()

            rows = [([*words(4), 2], [*words(n), 2]) for n in (3, 5, 2, 5, 4, 1)]
            yield collate(rows, TRAINED_IDS, TRAINED_IDS)


Build = Callable[..., tuple[Trainer, Monitor]]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def make(
        run: str = "run",
        *,
        dropout: float = 0.1,
        validate: Any = None,
        loop: dict[str, Any] | None = None,
        **checkpoint: Any,
    ) -> tuple[Trainer, Monitor]:
        torch.manual_seed(1)
        folder = tmp_path / run
        folder.mkdir(exist_ok=True)
        model = Seq2SeqTransformer(
            ModelConfig(
                mixer=MIXERS["dynamicconv"](
                    encoder_kernel_sizes=[3], decoder_kernel_sizes=[3], weight_dropout=dropout
                ),
                dim=16,
                ffn_dim=16,
                num_heads=2,
                encoder_layers=1,
                decoder_layers=1,
                dropout=dropout,
            ),
            src_vocab_size=VOCAB,
            tgt_vocab_size=VOCAB,
            src_pad_id=TRAINED_IDS.pad,
            tgt_pad_id=TRAINED_IDS.pad,
            backend=Backend.torch,
        )
        values = {"max_steps": 12, "validate_every_steps": 4, "log_every_steps": 3, **(loop or {})}
        trainer = Trainer(
            model,
            Batches(),
            loop=LoopConfig(**values),
            optim=OptimConfig(lr=1e-2),
            schedule=InverseSqrtConfig(warmup_steps=5),
            store=CheckpointStore(
                folder,
                CheckpointConfig(
                    **{"save_every_steps": 2, "keep_last": 5, "average_last": 2, **checkpoint}
                ),
            ),
            validate=validate or (lambda: Validation(metrics={"valid/bleu": 1.0})),
            device=torch.device("cpu"),
            precision=torch.float32,
            seed=1,
            distributed=Distributed(),
            measured=copy.deepcopy(model) if values.get("ema") else None,
        )
        trainer.resume()
        state = trainer.state
        monitor = Monitor(folder, step=state.step, lines=state.metric_lines, max_steps=12)
        return trainer, monitor

    return make


def train(trainer: Trainer, monitor: Monitor) -> int:
    with SignalFlag() as signals:
        trainer.run(monitor, signals)
    monitor.close()
    return signals.exit_code


def outcome(trainer: Trainer) -> tuple[dict[str, torch.Tensor], str]:
    loaded = trainer.store.load_latest()
    assert loaded is not None and loaded.step == 12
    lines = (trainer.store.folder.parent / "metrics.jsonl").read_text()
    averages = {f"ema.{name}": tensor for name, tensor in loaded.ema.items()}
    return {**loaded.model, **loaded.optimizer, **averages}, lines


def assert_equal_outcomes(first: Trainer, second: Trainer) -> None:
    (ours, our_lines), (theirs, their_lines) = outcome(first), outcome(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert our_lines == their_lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("moment", ["step", "validation"])
def test_a_signal_saves_and_the_next_run_goes_on_to_the_bit(
    build: Build, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, moment: str
) -> None:
    straight = build("straight")
    assert train(*straight) == 0

    def hit(*_: Any) -> Validation:
        os.kill(os.getpid(), number)
        return Validation(metrics={"valid/bleu": 1.0})

    if moment == "validation":
        stopped = build("stopped", validate=hit)
    else:
        stopped = build("stopped")
        backward = Trainer._backward

        def backward_and_hit(self: Trainer, *arguments: Any) -> Any:
            if self.state.step == 4:
                hit()
            return backward(self, *arguments)

        monkeypatch.setattr(Trainer, "_backward", backward_and_hit)
    assert train(*stopped) == 128 + number
    loaded = stopped[0].store.load_latest()
    assert loaded is not None and loaded.step == 4
    assert loaded.state["validated_step"] == 0  # still to come, in both cases
    monkeypatch.undo()
    again = build("stopped")
    assert train(*again) == 0
    assert_equal_outcomes(straight[0], again[0])


def test_leaving_a_part_out_of_the_restored_state_changes_the_end(
    build: Build, figure: Callable[[str, str], None]
) -> None:
    """Negative controls: what is restored matters, so equal ends prove something."""
    averaging = {"ema": 0.9}
    straight = build("straight", loop=averaging)
    train(*straight)

    def forget(trainer: Trainer, part: str) -> None:
        if part == "moments":
            trainer.optimizer.state.clear()
        elif part == "weights":
            nn.init.zeros_(next(trainer.model.parameters())[5])
        elif part == "moving average":
            assert trainer.ema is not None
            trainer.ema.load(model_tensors(trainer.model), source=part)
        elif part == "seed":
            trainer.seed += 1
        elif part == "step":
            trainer.state.step -= 1
        elif part == "data position":
            trainer.state.epoch, trainer.state.index = 0, 0
        elif part == "best":
            trainer.state.best_bleu = 9.0
        elif part == "log sums":
            trainer.state.loss_sum += 1.0

    parts = [
        *("nothing", "moments", "weights", "moving average", "seed", "step", "data position"),
        *("best", "log sums"),
    ]
    for part in parts:
        first, monitor = build(part, loop=averaging)
        first.loop.max_steps = 4
        train(first, monitor)
        second, monitor = build(part, loop=averaging)
        forget(second, part)
        train(second, monitor)
        with nullcontext() if part == "nothing" else pytest.raises(AssertionError):
            assert_equal_outcomes(straight[0], second)
    figure(
        "parts left out of the restored state, as a control",
        f"{len(parts) - 1} of {len(parts) - 1} change the end",
    )


@pytest.mark.parametrize("rewinds", [0, 2])
def test_gradients_that_stay_infinite_lead_back_to_a_checkpoint_then_to_the_end(
    build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rewinds: int
) -> None:
    update, seen = Trainer._update, []

    def poison(self: Trainer, lr: float) -> float | None:
        seen.append((self.state.step, self.state.epoch * 5 + self.state.index))
        if 5 <= seen[-1][1] < 5 + 3 * (rewinds or 99):
            next(self.model.parameters()).grad[0, 0] = float("inf")
        return update(self, lr)

    monkeypatch.setattr(Trainer, "_update", poison)
    trainer, monitor = build(loop={"max_skipped_steps": 3})
    if not rewinds:
        with pytest.raises(DivergenceError, match="no finite gradient in 3 steps .* after 2 ret"):
            train(trainer, monitor)
        return
    train(trainer, monitor)
    assert trainer.state.rewinds == 2 and trainer.state.skipped_steps == 6
    assert caplog.text.count("going on from step") == 2
    # Steps are repeated from the checkpoint on, data is not.
    steps, places = zip(*seen, strict=True)
    assert list(places) == list(range(len(places)))
    assert steps[:9] == (1, 2, 3, 4, 5, 6, 7, 8, 7)
    written = [json.loads(line)["step"] for line in outcome(trainer)[1].splitlines()]
    assert written == sorted(written)


def test_a_checkpoint_among_failed_steps_is_a_new_beginning_of_their_count(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Trainer._update

    def poison(self: Trainer, lr: float) -> float | None:
        if 5 <= self.state.epoch * 5 + self.state.index < 5 + 4:
            next(self.model.parameters()).grad[0, 0] = float("inf")
        return update(self, lr)

    monkeypatch.setattr(Trainer, "_update", poison)
    trainer, monitor = build(loop={"max_skipped_steps": 3}, save_every_steps=1)
    train(trainer, monitor)
    assert trainer.state.rewinds == 1


def test_a_signal_before_the_first_step_leaves_no_checkpoint(build: Build) -> None:
    trainer, monitor = build()
    with SignalFlag() as signals:
        signals.received = signal.SIGTERM
        trainer.run(monitor, signals)
    monitor.close()
    assert trainer.store.steps() == []
    assert not (trainer.store.folder / "best").exists()


def test_the_moving_average_is_of_finite_updates_and_returns_with_its_checkpoint(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, rewind = Trainer._update, Trainer._rewind
    trainer, monitor = build(
        loop={"max_skipped_steps": 3, "ema": 0.9, "validate_every_steps": 100}, save_every_steps=5
    )
    assert trainer.ema is not None
    expected = {name: each.double() for name, each in trainer.ema.tensors().items()}
    kept, returned = {}, []

    def follow(self: Trainer, lr: float) -> float | None:
        step, place = self.state.step, self.state.epoch * 5 + self.state.index
        if place in (3, 6, 7, 8):
            next(self.model.parameters()).grad[0, 0] = float("nan")
        norm = update(self, lr)
        if norm is not None:
            decay = min(0.9, (1 + step) / (10 + step))
            for name, tensor in model_tensors(self.model).items():
                expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
        if step == 5 and not kept:
            kept.update(expected)
        return norm

    def note_return(self: Trainer, *arguments: Any) -> None:
        rewind(self, *arguments)
        returned.append(self.state.step)
        assert any(not torch.equal(expected[name], kept[name]) for name in kept)
        expected.update(kept)

    monkeypatch.setattr(Trainer, "_update", follow)
    monkeypatch.setattr(Trainer, "_rewind", note_return)
    train(trainer, monitor)
    assert returned == [5] and trainer.state.skipped_steps == 4
    loaded = trainer.store.load_latest()
    assert loaded is not None and loaded.step == 12
    assert loaded.ema.keys() == expected.keys()
    for name, tensor in loaded.ema.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-6)
        assert not torch.equal(tensor, loaded.model[name])


def test_without_a_checkpoint_there_is_nothing_to_return_to(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Trainer, "_backward", lambda self, *_: (torch.tensor(math.nan), torch.tensor(math.nan))
    )
    original = Trainer._update

    def poison(self: Trainer, lr: float) -> float | None:
        for parameter in self.model.parameters():
            parameter.grad = torch.full_like(parameter, math.nan)
        return original(self, lr)

    monkeypatch.setattr(Trainer, "_update", poison)
    trainer, monitor = build(loop={"max_skipped_steps": 2}, save_every_steps=100)
    with pytest.raises(DivergenceError, match="no finite gradient in 2 steps up to step 2"):
        train(trainer, monitor)


def test_a_norm_that_stands_out_is_logged_after_warm_up(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, monitor = build()
    for step in range(1, 301):
        trainer.state.step = step
        trainer._watch(50.0 if step in (40, 250) else 1.0 + 0.1 * (step % 3))
    assert caplog.text.count("gradient norm") == 1
    assert "step 250: gradient norm 50" in caplog.text
    monitor.close()


def gradients(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.grad for parameter in trainer.model.parameters()]


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_a_batch_that_does_not_fit_is_cut_and_gives_the_same_gradient(
    build: Build, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    batches = list(Batches().iterate(0))[:2]
    tokens = sum(batch.num_tokens for batch in batches)
    whole, monitor = build("whole", dropout=0.0)
    expected = whole._gradient(batches, tokens)
    monitor.close()
    forward = Seq2SeqTransformer.forward

    def small(self: Seq2SeqTransformer, src: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if len(src) > limit:
            raise MemoryError
        return forward(self, src, *rest)

    monkeypatch.setattr(Seq2SeqTransformer, "forward", small)
    cut, monitor = build("cut", dropout=0.0)
    found = cut._gradient(batches, tokens)
    monitor.close()
    for ours, theirs in zip((*found, *gradients(cut)), (*expected, *gradients(whole)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_full_disk_stops_training_or_does_not(
    build: Build,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    on_failure: OnFailure,
) -> None:
    def full(action: str, path: Path) -> None:
        if "step_00000006" in str(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole_files, "announce", full)
    trainer, monitor = build(on_failure=on_failure)
    if on_failure is OnFailure.stop:
        with pytest.raises(CheckpointError, match="step_00000006 .*No space left"):
            train(trainer, monitor)
        assert trainer.store.steps() == [2, 4]
        return
    train(trainer, monitor)
    assert "No space left on device" in caplog.text and "going on" in caplog.text
    assert trainer.store.steps() == [2, 4, 8, 10, 12]


@pytest.mark.parametrize("strange", ["mood", "epoch", "scaler"])
def test_a_state_of_another_version_is_refused(build: Build, strange: str) -> None:
    trainer, monitor = build()
    train(trainer, monitor)
    path = trainer.store.path(12)
    state = json.loads((path / "state.json").read_text())
    if state.pop(strange, None) is None:
        state[strange] = 1
    content = json.dumps(state).encode()
    (path / "state.json").write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["state.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"made by another version .*{strange}"):
        build()


def test_the_rate_of_a_step_is_that_of_the_steps_before_it(build: Build) -> None:
    """As fairseq's of an update is: a run as long as its period does not end with the next one."""
    trainer, monitor = build(loop={"log_every_steps": 1})
    trainer.schedule = CosineConfig(warmup_steps=4, period_steps=8, min_lr=1e-6, warmup_init_lr=0.0)
    taken = []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: taken.append(optimizer.param_groups[0]["lr"])
    )
    trainer.run(monitor, SignalFlag())
    monitor.close()
    half = [1e-6 + 0.5 * (1e-2 - 1e-6) * (1 + math.cos(math.pi * t / 8)) for t in range(8)]
    assert taken == pytest.approx([0.0, 0.0025, 0.005, 0.0075, *half])
    lines = (trainer.store.folder.parent / "metrics.jsonl").read_text().splitlines()
    logged = [found["train/lr"] for line in lines if "train/lr" in (found := json.loads(line))]
    assert logged == taken
