"""What stands on the disk after a save that was killed, or failed, at every one of its actions."""

import errno
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from children import exit_code, start
from deaths import KILLED, die_at_action

from lightconv_mt import whole_files
from lightconv_mt.errors import CheckpointError
from lightconv_mt.train import storage
from lightconv_mt.train.checkpoint import Checkpoint, CheckpointConfig, CheckpointStore


def open_store(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, CheckpointConfig(keep_last=2, average_last=2))


def saving(folder: Path, step: int) -> Callable[[], object]:
    tensors = {"a": torch.full((3,), float(step)), "b": torch.arange(4.0)}
    checkpoint = Checkpoint(
        step=step, model=tensors, optimizer={"exp_avg.a": tensors["a"]}, state={"step": step}
    )
    return partial(open_store(folder).save, checkpoint, best_step=step - step % 2)


def save(folder: Path, step: int) -> None:
    saving(folder, step)()


def count_actions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many changes to the disk the fourth save makes."""
    actions: list[str] = []
    for step in (1, 2, 3):
        save(folder, step)
    with monkeypatch.context() as patch:
        patch.setattr(whole_files, "announce", lambda action, path: actions.append(action))
        save(folder, 4)
    assert set(actions) == {"create", "write", "sync", "rename", "hide", "remove"}
    return len(actions)


def test_death_at_any_action_leaves_a_checkpoint_at_most_one_interval_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Callable[[str, str], None]
) -> None:
    count = count_actions(tmp_path / "whole", monkeypatch)
    assert count > 15
    for fatal in range(count):
        folder = tmp_path / str(fatal)
        for step in (1, 2, 3):
            save(folder, step)
        assert exit_code(start(partial(die_at_action, fatal), saving(folder, 4))) == KILLED

        store = open_store(folder)
        store.remove_leftovers()
        assert not list((folder / "checkpoints").glob(".*"))
        loaded = store.load_latest()
        assert loaded is not None and loaded.step in (3, 4)
        assert torch.equal(loaded.model["a"], torch.full((3,), float(loaded.step)))
        best = store.best_step()
        assert best in (2, 4)
        storage.verify_folder(store.path(best))
        # The same save again ends as if nothing had happened.
        save(folder, 4)
        assert open_store(folder).steps() == open_store(tmp_path / "whole").steps() == [3, 4]
        assert open_store(folder).best_step() == 4
    figure(
        "death at each of a save's actions on the disk",
        f"{count} of {count} leave a checkpoint at most one interval old",
    )


def save_validated(folder: Path) -> None:
    """Save step 3 once more, with what a validation added to its state."""
    tensors = {"a": torch.full((3,), 3.0), "b": torch.arange(4.0)}
    checkpoint = Checkpoint(
        step=3, model=tensors, optimizer={"exp_avg.a": tensors["a"]}, state={"validated": 3}
    )
    open_store(folder).save(checkpoint, best_step=3)


@pytest.mark.parametrize("ends", [True, False])
def test_a_checkpoint_that_is_replaced_is_never_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    actions: list[str] = []
    save(tmp_path / "whole", 3)
    with monkeypatch.context() as patch:
        patch.setattr(whole_files, "announce", lambda action, path: actions.append(action))
        save_validated(tmp_path / "whole")
    assert {"hide", "rename"} <= set(actions)
    for failing in range(len(actions)):
        folder = tmp_path / str(failing)
        save(folder, 3)
        if ends:
            again = partial(save_validated, folder)
            assert exit_code(start(partial(die_at_action, failing), again)) == KILLED
        else:
            left = iter(range(len(actions) + 1))

            def fail(action: str, path: Path, left=left, failing=failing) -> None:
                if next(left) == failing:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="intact"):
                patch.setattr(whole_files, "announce", fail)
                save_validated(folder)
            assert open_store(folder).load_latest() is not None
        store = open_store(folder)
        store.remove_leftovers()
        loaded = store.load_latest()
        assert loaded is not None and loaded.state in ({"step": 3}, {"validated": 3})
        assert not list((folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
def test_a_failure_at_any_action_is_named_and_older_checkpoints_stay(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    figure: Callable[[str, str], None],
    code: int,
) -> None:
    count = count_actions(tmp_path / "whole", monkeypatch)
    for failing in range(count):
        folder = tmp_path / str(failing)
        for step in (1, 2, 3):
            save(folder, step)
        left = iter(range(count + 1))
        caplog.clear()

        def fail(action: str, path: Path, left=left, failing=failing) -> None:
            if next(left) == failing:
                raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(whole_files, "announce", fail)
            try:
                save(folder, 4)
                message = caplog.text
                assert "cannot remove" in message
            except CheckpointError as error:
                message = str(error)
                assert "cannot write" in message and "intact" in message
        assert str(folder) in message and os.strerror(code) in message
        store = open_store(folder)
        loaded = store.load_latest()
        assert loaded is not None and loaded.step in (3, 4)
        store.remove_leftovers()
        assert not list((folder / "checkpoints").glob(".*"))
    figure(
        f"{errno.errorcode[code]} at each of a save's actions",
        f"{count} of {count} named with the path, the older checkpoints intact",
    )


def test_a_full_disk_is_noticed_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        CheckpointError, match=r"cannot write .*/new \(1,000 bytes\): only 10 bytes are free"
    ):
        storage.write_folder(tmp_path / "new", {"a": Path.touch}, size=1000)
    assert list(tmp_path.iterdir()) == []


def damages(rng: random.Random, size: int, count: int) -> list[tuple[str, int]]:
    """Cuts and flipped bits at random offsets of a file."""
    half = count // 11
    cuts = [("cut", rng.randrange(size)) for _ in range(half)]
    return [*cuts, *(("flip", rng.randrange(8 * size)) for _ in range(count - half))]


def test_no_damage_is_loaded_silently(tmp_path: Path, figure: Callable[[str, str], None]) -> None:
    """1,100 corruptions: each falls back to the checkpoint before, or changed no value."""
    for step in (1, 2):
        save(tmp_path, step)
    store, rng = open_store(tmp_path), random.Random(1)
    intact = {path.name: path.read_bytes() for path in store.path(2).iterdir()}
    tried = 0
    for name, content in intact.items():
        path = store.path(2) / name
        for kind, place in damages(rng, len(content), 275):
            changed = bytearray(content[:place] if kind == "cut" else content)
            if kind == "flip":
                changed[place // 8] ^= 1 << place % 8
            path.write_bytes(changed)
            loaded = store.load_latest()
            assert loaded is not None and loaded.step == 1, (name, kind, place)
            tried += 1
        path.write_bytes(content)
    assert tried == 1100
    figure("checkpoint files cut short or with a bit flipped", f"{tried}, 0 loaded")
    assert store.load_latest().step == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "model.safetensors").unlink(),
        lambda path: (path / "state.json").write_bytes(b""),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "manifest.json").write_text("{}"),
        lambda path: (path / "manifest.json").write_text("[]"),
        lambda path: (path / "more").write_bytes(b"x"),
        lambda path: shutil.rmtree(path) or path.mkdir(),
        lambda path: shutil.rmtree(path) or path.write_bytes(b"x"),
        lambda path: shutil.rmtree(path) or path.symlink_to(path),
        lambda path: (
            (path / "model.safetensors").rename(path / "x"),
            (path / "optimizer.safetensors").rename(path / "model.safetensors"),
            (path / "x").rename(path / "optimizer.safetensors"),
        ),
    ],
)
def test_files_that_are_missing_swapped_or_strange_are_noticed(tmp_path: Path, damage) -> None:
    save(tmp_path, 1)
    damage(open_store(tmp_path).path(1))
    with pytest.raises(CheckpointError, match="all 1 checkpoints"):
        open_store(tmp_path).load_latest()


def test_a_damaged_checkpoint_is_written_anew_when_training_reaches_it_again(
    tmp_path: Path,
) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    (open_store(tmp_path).path(2) / "state.json").write_bytes(b"")
    save(tmp_path, 2)
    assert open_store(tmp_path).load_latest().step == 2


def test_a_pointer_to_nowhere_is_named(tmp_path: Path) -> None:
    save(tmp_path, 2)
    for text in ("", "step_00000009", "..", "\x00"):
        (tmp_path / "checkpoints" / "best").write_text(text)
        with pytest.raises(CheckpointError, match="best names no checkpoint"):
            open_store(tmp_path).best_step()
