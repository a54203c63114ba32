"""Checkpoints are whole or invisible, verified, and dropped only after a newer one stands."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from lightconv_mt.errors import CheckpointError, ConfigError
from lightconv_mt.train.checkpoint import (
    Checkpoint,
    CheckpointConfig,
    CheckpointStore,
    average_checkpoints,
    load_model_tensors,
    load_optimizer_tensors,
    load_weights,
    model_tensors,
    optimizer_tensors,
    weights_digest,
    write_average,
)
from lightconv_mt.train.optim import OptimConfig, build_optimizer
from lightconv_mt.train.storage import verify_folder


def checkpoint(step: int, **values: dict[str, torch.Tensor]) -> Checkpoint:
    return Checkpoint(
        step=step,
        model={"a": torch.full((3,), float(step)), "b": torch.randn(2, 2)},
        optimizer={"exp_avg.a": torch.randn(3)},
        state={"step": step, "note": 0.1 + 0.2},
        **values,
    )


def store(folder: Path, **values: int) -> CheckpointStore:
    return CheckpointStore(
        folder, CheckpointConfig(**{"keep_last": 3, "average_last": 2, **values})
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = checkpoint(7, ema={"a": torch.randn(3), "b": torch.randn(2, 2)})
    store(tmp_path).save(saved, best_step=0)
    loaded = store(tmp_path).load_latest()
    assert loaded is not None
    assert (loaded.step, loaded.state) == (7, saved.state)
    for part in ("model", "optimizer", "ema"):
        ours, theirs = getattr(loaded, part), getattr(saved, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_nothing_yet_is_no_error(tmp_path: Path) -> None:
    assert store(tmp_path).load_latest() is None


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    for step in range(1, 8):
        checkpoints.save(checkpoint(step), best_step=2)
    assert checkpoints.steps() == [2, 5, 6, 7]
    assert checkpoints.best_step() == 2


def test_a_save_out_of_turn_is_gone_after_the_next_in_turn(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    found = []
    for step in (10, 20, 30, 31, 34, 37, 40):
        checkpoints.save(checkpoint(step), best_step=10, planned=lambda step: step % 10 == 0)
        found.append(checkpoints.steps())
    assert found[3:] == [
        [10, 20, 30, 31],
        [10, 20, 30, 31, 34],
        [10, 20, 30, 34, 37],
        [10, 20, 30, 40],
    ]


def test_leftovers_of_a_killed_save_are_removed_and_never_read(tmp_path: Path) -> None:
    store(tmp_path).save(checkpoint(1), best_step=0)
    leftover = tmp_path / "checkpoints" / ".step_00000002.tmp-123"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    checkpoints = store(tmp_path)
    assert checkpoints.steps() == [1]
    average = tmp_path / ".average.tmp-123"
    average.mkdir()
    assert leftover.exists(), "only the process that trains may remove it"
    checkpoints.remove_leftovers()
    assert not leftover.exists() and not average.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"),
        "manifest.json",
    ],
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    checkpoints = store(tmp_path)
    for step in (1, 2):
        checkpoints.save(checkpoint(step, ema={"a": torch.ones(3)}), best_step=0)
    path = checkpoints.path(2) / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    changed = {"flip": bytes(content), "truncate": bytes(content[:-7]), "empty": b""}
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(changed[damage])
    loaded = checkpoints.load_latest()
    assert loaded is not None and loaded.step == 1
    if not (name == "manifest.json" and damage == "remove"):
        assert "step_00000002" in caplog.text


def test_all_damaged_is_a_refusal(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    for step in (1, 2):
        checkpoints.save(checkpoint(step), best_step=0)
        (checkpoints.path(step) / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="all 2 checkpoints .* are damaged"):
        checkpoints.load_latest()


def test_a_damaged_checkpoint_is_left_out_of_the_last_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = store(tmp_path, keep_last=4)
    for step in (1, 2, 3, 4):
        checkpoints.save(checkpoint(step), best_step=0)
    (checkpoints.path(3) / "model.safetensors").write_bytes(b"x")
    assert checkpoints.last_whole(2) == [checkpoints.path(2), checkpoints.path(4)]
    assert "step_00000003" in caplog.text and "left out" in caplog.text
    with pytest.raises(CheckpointError, match="no whole checkpoint in"):
        store(tmp_path / "none").last_whole(2)


def test_the_average_is_the_mean(tmp_path: Path) -> None:
    checkpoints = store(tmp_path, keep_last=4, average_last=4)
    saved = [checkpoint(step) for step in (1, 2, 6)]
    for each in saved:
        checkpoints.save(each, best_step=0)
    paths = [checkpoints.path(step) for step in (1, 2, 6)]
    mean = average_checkpoints(paths)
    assert torch.equal(mean["a"], torch.full((3,), 3.0))
    torch.testing.assert_close(
        mean["b"], sum(each.model["b"].double() for each in saved).float() / 3
    )
    for _ in range(2):  # an older average is replaced
        folder = write_average(tmp_path, paths)
    verify_folder(folder)
    assert torch.equal(load_weights(folder)["b"], mean["b"])
    assert json.loads((folder / "state.json").read_text())["averaged"] == [
        path.name for path in paths
    ]


def test_a_moving_average_is_what_a_checkpoint_is_used_for(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    plain, averaged = checkpoint(1), checkpoint(2, ema={"a": torch.zeros(3), "b": torch.ones(2, 2)})
    for each in (plain, averaged):
        checkpoints.save(each, best_step=0)
    folders = [checkpoints.path(step) for step in (1, 2)]
    names = {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    assert [{path.name for path in folder.iterdir()} for folder in folders] == [
        names,
        names | {"ema.safetensors"},
    ]
    for folder, used in zip(folders, (plain.model, averaged.ema), strict=True):
        found = load_weights(folder)
        assert found.keys() == used.keys()
        assert all(torch.equal(found[name], used[name]) for name in found)
    for folder, name in zip(folders, ("model.safetensors", "ema.safetensors"), strict=True):
        assert weights_digest(folder) == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    mean = load_weights(write_average(tmp_path, folders))
    assert torch.equal(mean["a"], torch.full((3,), 0.5))
    # Without its file the checkpoint is damaged, not one that has no average.
    (folders[1] / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"is damaged: .* differ by ema\.safetensors"):
        load_weights(folders[1])


def test_weights_that_do_not_fit_are_refused_whole() -> None:
    model = nn.Linear(2, 3)
    before = model_tensors(model)
    with pytest.raises(
        CheckpointError, match=r"1 parameters are missing \(bias\) and 1 unknown \(extra\)"
    ):
        load_model_tensors(
            model, {"weight": torch.zeros(3, 2), "extra": torch.zeros(1)}, source="x"
        )
    with pytest.raises(CheckpointError, match=r"weight is \(2, 3\) there and \(3, 2\) here"):
        load_model_tensors(model, {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)}, source="x")
    assert all(torch.equal(before[name], tensor) for name, tensor in model_tensors(model).items())


def test_optimizer_state_goes_on_exactly() -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for number in range(count):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.1 * (number + 1))
            optimizer.step()

    straight = nn.Linear(2, 3)
    first = build_optimizer(OptimConfig(), straight.parameters())
    steps(straight, first, 2)
    fresh = nn.Linear(2, 3)
    load_model_tensors(fresh, model_tensors(straight), source="x")
    second = build_optimizer(OptimConfig(), fresh.parameters())
    # Through bytes: the tensors handed out are those the optimiser goes on changing.
    saved = load(save(optimizer_tensors(first, straight)))
    load_optimizer_tensors(second, fresh, saved)
    steps(straight, first, 3)
    steps(fresh, second, 3)
    assert all(
        torch.equal(*pair) for pair in zip(straight.parameters(), fresh.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "values", [{"keep_last": 1}, {"average_last": 11}, {"save_every_steps": 0}]
)
def test_impossible_settings_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        CheckpointConfig(**values)
