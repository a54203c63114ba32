"""What a run says of itself survives a crash and a resume."""

import errno
import json
import logging
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from lightconv_mt.errors import CheckpointError
from lightconv_mt.train.checkpoint import OnFailure
from lightconv_mt.train.monitor import Monitor


def steps(run_dir: Path) -> list[int]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_lines_after_the_resumed_state_are_dropped(tmp_path: Path) -> None:
    first = Monitor(tmp_path, step=0, lines=0, max_steps=10)
    for step in (1, 2, 3):
        first.metrics(step, {"train/loss": 1.0 / step})
    first.close()
    again = Monitor(tmp_path, step=2, lines=2, max_steps=10)
    again.metrics(3, {"train/loss": 5.0})
    again.close()
    assert steps(tmp_path) == [1, 2, 3]
    assert (
        json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["train/loss"] == 5.0
    )


@pytest.mark.parametrize(
    ("rest", "lines"), [(b'{"step": 2, "tra', 2), (b"\x00\x00\x00\n", 1), (b"\xff\xfe\n", 1)]
)
def test_what_a_killed_run_wrote_too_much_is_dropped(
    tmp_path: Path, rest: bytes, lines: int
) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + rest)
    monitor = Monitor(tmp_path, step=2, lines=lines, max_steps=10)
    assert monitor.lines == 1
    monitor.close()
    assert steps(tmp_path) == [1]


def test_lines_that_stay_are_not_written_anew(tmp_path: Path) -> None:
    """Else a death in between would lose them."""
    sizes: list[int] = []

    class CutOnly:
        def truncate(self, size: int) -> None:
            sizes.append(size)

    monitor = Monitor(tmp_path, step=0, lines=0, max_steps=10)
    for step in (1, 2, 3):
        monitor.metrics(step, {"train/loss": 1.0})
    monitor.close()
    monitor._file = cast(Any, CutOnly())
    monitor.rewind(2)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert sizes == [len("".join(text.splitlines(keepends=True)[:2]))]
    assert monitor.lines == 2


def test_scalars_samples_and_pictures_reach_tensorboard(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, step=0, lines=0, max_steps=10)
    monitor.metrics(4, {"valid/bleu": 12.5}, timing={"valid/seconds": 2.0})
    monitor.samples(4, [("ein Satz", "a sentence", "one sentence")])
    monitor.figures(4, {"source_attention": plt.Figure(figsize=(1, 1))})
    monitor.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in board.Scalars("valid/bleu")] == [(4, 12.5)]
    assert "valid/seconds" in board.Tags()["scalars"]
    assert board.Tags()["images"] == ["source_attention"]
    (text,) = board.Tensors("samples/text_summary")
    assert b"one sentence" in text.tensor_proto.string_val[0]
    # A resumed run must repeat its file to the byte, so clock times stay out of it.
    assert "seconds" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.filterwarnings("error")
def test_characters_that_no_font_has_are_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lightconv_mt")
    figure, axis = plt.subplots()
    axis.set_title("\ue000\ue001")  # private characters
    monitor = Monitor(tmp_path, step=0, lines=0, max_steps=10)
    for step in (1, 2):
        monitor.figures(step, {"kernels/encoder": figure})
    monitor.close()
    plt.close(figure)
    assert [record.message for record in caplog.records] == [
        "pictures: no font here has some of the characters; install one that does, such as "
        "Noto Sans CJK"
    ]


def test_a_full_disk_costs_the_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = Monitor(tmp_path, step=0, lines=0, max_steps=10)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(monitor._board, "add_scalar", full)
    for step in (1, 2):
        monitor.metrics(step, {"train/loss": 1.0})
        monitor.samples(step, [("a", "b", "c")])
    assert caplog.text.count("TensorBoard's files cannot be written: No space left") == 1
    assert monitor.lines == 2
    monitor.close()


def test_the_board_says_once_that_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its thread would print a traceback beside our line; other threads' failures are shown."""
    shown: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", shown.append)
    monitor = Monitor(tmp_path, step=0, lines=0, max_steps=10)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordWriter, "write", full)
    for step in range(1, 100):
        monitor.metrics(step, {"train/loss": 1.0})
    other = threading.Thread(target=full)
    other.start()
    other.join()
    monitor.close()
    assert caplog.text.count("TensorBoard's files cannot be written: No space left") == 1
    assert [each.thread for each in shown] == [other]
    assert threading.excepthook == shown.append


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process can be larger, and the write that comes to the end is cut there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def without_board(run_dir: Path, on_failure: OnFailure) -> Monitor:
    """A monitor whose board, which writes when it likes, has been given up."""
    monitor = Monitor(run_dir, step=0, lines=0, max_steps=10, on_failure=on_failure)
    assert monitor._board is not None
    monitor._board.close()
    monitor._board = None
    return monitor


def test_metrics_without_room_end_a_run(tmp_path: Path) -> None:
    monitor = without_board(tmp_path, OnFailure.stop)
    monitor.metrics(1, {"train/loss": 1.0})
    message = r"cannot write .*metrics\.jsonl: File too large; the checkpoints are intact"
    with room_for(50), pytest.raises(CheckpointError, match=message):
        monitor.metrics(2, {"train/loss": 1.0})
    assert steps(tmp_path) == [1]


def test_metrics_without_room_wait_for_some_if_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = without_board(tmp_path, OnFailure.go_on)
    monitor.metrics(1, {"train/loss": 1.0})
    with room_for(50):
        for step in (2, 3, 4):
            monitor.metrics(step, {"train/loss": 1.0})
            assert steps(tmp_path) == [1]  # and no part of a line
        assert caplog.text.count("File too large; the checkpoints are intact") == 3
        assert "going on, as checkpoint.on_failure=go_on asks" in caplog.text
        monitor.rewind(3)
        monitor.metrics(9, {"train/loss": 1.0})
        assert (monitor.lines, steps(tmp_path)) == (4, [1])
    monitor.metrics(10, {"train/loss": 1.0})
    assert steps(tmp_path) == [1, 2, 3, 9, 10]
    with room_for(50):
        monitor.metrics(11, {"train/loss": 1.0})
        monitor.rewind(1)
        assert (monitor.lines, steps(tmp_path)) == (1, [1])
        monitor.metrics(2, {"train/loss": 1.0})
        with pytest.raises(CheckpointError, match="File too large"):
            monitor.close()
