"""Learning curves: what is read of a run, and a picture that does not change."""

import json
import sys
from pathlib import Path

import pytest

import plot_curves


def write(run: Path, records: list[dict[str, float]]) -> Path:
    run.mkdir()
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    (run / "metrics.jsonl").write_text(text)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(
        tmp_path / "mine",
        [
            {"step": 10, "train/nll": 3.0, "train/lr": 0.1},
            {"step": 20, "valid/nll": 2.5, "valid/bleu": 7.0},
            {"step": 20, "train/nll": 2.0},
        ],
    )


def test_each_metric_has_its_own_steps(run: Path) -> None:
    curves = plot_curves.read_curves(run / "metrics.jsonl")
    assert curves == {
        "train/nll": ([10, 20], [3.0, 2.0]),
        "valid/nll": ([20], [2.5]),
        "valid/bleu": ([20], [7.0]),
    }
    later = plot_curves.read_curves(run / "metrics.jsonl", from_step=11)
    assert later["train/nll"] == ([20], [2.0])


def test_a_picture_names_the_runs_and_is_the_same_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for picture in pictures:
        monkeypatch.setattr(sys, "argv", ["plot_curves.py", str(picture), str(run)])
        assert plot_curves.main() == 0
    first, second = (picture.read_bytes() for picture in pictures)
    assert first == second
    assert b"<!-- mine -->" in first and b"<!-- validation BLEU -->" in first
    alone = ["plot_curves.py", str(pictures[0]), str(run), "--panels", "nll"]
    monkeypatch.setattr(sys, "argv", alone)
    assert plot_curves.main() == 0
    assert b"<!-- validation BLEU -->" not in pictures[0].read_bytes()


@pytest.mark.parametrize("text", [None, "no json\n", '{"loss": 1}\n', "[1]\n"])
def test_a_run_without_metrics_is_named(
    text: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "curves.svg"), str(tmp_path)])
    assert plot_curves.main() == 2
    assert f"error: {tmp_path} has no metrics" in capsys.readouterr().err
    assert not (tmp_path / "curves.svg").exists()


def test_a_picture_that_cannot_be_is_told(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "no" / "curves.svg"), str(run)])
    assert plot_curves.main() == 2
    assert f"error: cannot write {tmp_path}/no/curves.svg: No such" in capsys.readouterr().err
    for picture in (run, tmp_path / "curves.png"):
        monkeypatch.setattr(sys, "argv", ["x", str(picture), str(run)])
        with pytest.raises(SystemExit):
            plot_curves.main()
        assert f"{picture} is no .svg file; the picture comes" in capsys.readouterr().err
    assert not (tmp_path / "curves.png").exists()
