"""Averaging as a command."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from lightconv_mt.errors import CheckpointError
from lightconv_mt.train.checkpoint import (
    Checkpoint,
    CheckpointConfig,
    CheckpointStore,
    load_weights,
)

SCRIPT = Path(__file__).parent.parent / "scripts" / "average_checkpoints.py"
_spec = importlib.util.spec_from_file_location("average_checkpoints", SCRIPT)
assert _spec is not None and _spec.loader is not None
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    class Run:
        checkpoint = CheckpointConfig(keep_last=5, average_last=3)

    monkeypatch.setattr(script, "load_run_config", lambda _: Run)
    store = CheckpointStore(tmp_path, Run.checkpoint)
    for step in (1, 2, 4, 8):
        weights = {"a": torch.tensor([float(step)])}
        store.save(Checkpoint(step=step, model=weights, optimizer={}, state={}), best_step=0)
    return tmp_path


@pytest.mark.parametrize(
    ("last", "steps", "expected"),
    [(None, None, [2, 4, 8]), (2, None, [4, 8]), (None, [1, 8], [1, 8]), (None, [8, 1, 8], [1, 8])],
)
def test_the_chosen_checkpoints_are_averaged(
    run_dir: Path, last: int | None, steps: list[int] | None, expected: list[int]
) -> None:
    folder, used = script.average(run_dir, last, steps)
    assert used == expected
    assert load_weights(folder)["a"].item() == pytest.approx(sum(expected) / len(expected))


def test_fewer_checkpoints_than_configured_are_all_averaged(run_dir: Path) -> None:
    for step in (1, 2):
        shutil.rmtree(CheckpointStore(run_dir, CheckpointConfig()).path(step))
    assert script.average(run_dir, None, None)[1] == [4, 8]


@pytest.mark.parametrize(("last", "steps"), [(5, None), (0, None), (-1, None), (None, [1, 3])])
def test_checkpoints_that_are_not_there_are_named(
    run_dir: Path, last: int | None, steps: list[int] | None
) -> None:
    with pytest.raises(CheckpointError, match="has 4 checkpoints, steps 1, 2, 4, 8; choose"):
        script.average(run_dir, last, steps)
    assert not (run_dir / "average").exists()


def test_the_score_of_a_former_average_is_forgotten(run_dir: Path) -> None:
    scores = run_dir / "bleu.json"
    scores.write_text(json.dumps({"average": {"bleu": 30.5}, "best": {"bleu": 31.0}}))
    with pytest.raises(CheckpointError):
        script.average(run_dir, 5, None)
    assert json.loads(scores.read_text())["average"]["bleu"] == 30.5, "nothing was averaged"
    script.average(run_dir, 2, None)
    assert json.loads(scores.read_text()) == {"best": {"bleu": 31.0}}
