"""What a run says of itself: log lines or a progress bar, metrics.jsonl, TensorBoard."""

import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from lightconv_mt.errors import CheckpointError
from lightconv_mt.train.checkpoint import OnFailure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


class SilentMonitor:
    """What processes beside the main one report to."""

    lines = 0

    def rewind(self, lines: int) -> None:
        """Nothing."""

    def advance(self) -> None:
        """Nothing."""

    def metrics(
        self, step: int, values: Mapping[str, float], *, timing: Mapping[str, float] | None = None
    ) -> None:
        """Nothing."""

    def samples(self, step: int, samples: list[tuple[str, str, str]]) -> None:
        """Nothing."""

    def figures(self, step: int, figures: Mapping[str, "Figure"]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Monitor(SilentMonitor):
    """Writes a run's numbers; metrics.jsonl holds no times, so resuming repeats it to the byte."""

    def __init__(
        self,
        run_dir: Path,
        *,
        step: int,
        lines: int,
        max_steps: int,
        on_failure: OnFailure = OnFailure.stop,
    ) -> None:
        """Open the files and drop what was written after the state that training resumes from.

        Args:
            run_dir: of the run.
            step: steps done so far.
            lines: of metrics.jsonl that belong to them.
            max_steps: for the progress bar, shown on a terminal only.
            on_failure: what follows a line of metrics.jsonl that cannot be written; with `go_on`
                it waits for the next one.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._path = run_dir / "metrics.jsonl"
        self._file = self._path.open("ab", buffering=0)
        self._waiting: list[bytes] = []  # lines that could not be written yet
        self._on_failure = on_failure
        self.rewind(lines)
        self._told_of_fonts = False
        self._board: SummaryWriter | None = None
        self._thread_hook = threading.excepthook
        threading.excepthook = self._thread_failed
        with self._going_on_without_board():
            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)
        self._bar = tqdm(
            total=max_steps,
            initial=step,
            unit="step",
            file=sys.stderr,
            disable=None,
            dynamic_ncols=True,
        )

    def rewind(self, lines: int) -> None:
        """Drop all but the first lines of metrics.jsonl; a killed run may leave half of one."""
        with self._path.open("rb") as file:
            kept = [line for line, _ in zip(file, range(lines), strict=False)]
        kept = [line for line in kept if line.endswith(b"\n")]
        # Cut, never written anew: a death here must not lose what came before.
        self._file.truncate(sum(map(len, kept)))
        del self._waiting[max(0, lines - len(kept)) :]
        self.lines = len(kept) + len(self._waiting)

    def advance(self) -> None:
        """Count one step on the progress bar."""
        self._bar.update()

    def metrics(
        self, step: int, values: Mapping[str, float], *, timing: Mapping[str, float] | None = None
    ) -> None:
        """Record numbers of a step; `timing` goes to the log and TensorBoard alone.

        Raises:
            CheckpointError: when metrics.jsonl cannot be written, and that ends the run.
        """
        self._waiting.append(json.dumps({"step": step, **values}).encode() + b"\n")
        self.lines += 1
        try:
            self._write_waiting()
        except CheckpointError as error:
            if self._on_failure is OnFailure.stop:
                raise
            logger.warning("%s; going on, as checkpoint.on_failure=go_on asks", error)
        shown = {**values, **(timing or {})}
        for tag, value in shown.items():
            self._on_board("add_scalar", tag, value, step)
        line = "  ".join(f"{tag} {value:,.6g}" for tag, value in shown.items())
        if self._bar.disable:
            logger.info("step %d  %s", step, line)
        else:
            self._bar.write(f"step {step}  {line}", file=sys.stderr)

    def samples(self, step: int, samples: list[tuple[str, str, str]]) -> None:
        """Show translations: (source, reference, hypothesis)."""
        text = "\n".join(
            f"    source     {src}\n    reference  {ref}\n    hypothesis {hyp}"
            for src, ref, hyp in samples
        )
        if text:
            self._on_board("add_text", "samples", text, step)
            self._bar.write(text, file=sys.stderr)

    def figures(self, step: int, figures: Mapping[str, "Figure"]) -> None:
        """Show pictures; that no font has some of their characters is told once."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for tag, figure in figures.items():
                self._on_board("add_figure", tag, figure, step)
        missing = [each for each in caught if "missing from font" in str(each.message)]
        for each in caught:
            if each not in missing:
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        if missing and not self._told_of_fonts:
            self._told_of_fonts = True
            logger.info(
                "pictures: no font here has some of the characters; install one that does, such as "
                "Noto Sans CJK"
            )

    def close(self) -> None:
        """Flush and close everything.

        Raises:
            CheckpointError: when metrics.jsonl still cannot be written.
        """
        self._bar.close()
        self._on_board("close")
        threading.excepthook = self._thread_hook
        with self._file:
            self._write_waiting()

    def _write_waiting(self) -> None:
        """Append the lines that are not in metrics.jsonl yet, all of them or none."""
        size, rest = os.fstat(self._file.fileno()).st_size, b"".join(self._waiting)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(size)
            raise CheckpointError(
                f"cannot write {self._path}: {error.strerror}; the checkpoints are intact; "
                f"free some space"
            ) from error
        self._waiting.clear()

    def _on_board(self, method: str, *what: object) -> None:
        """Call a method of TensorBoard's writer, if there still is one."""
        if self._board is not None:
            with self._going_on_without_board():
                getattr(self._board, method)(*what)

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread raises what its writer raises too: once is enough."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._thread_hook(failure)

    @contextmanager
    def _going_on_without_board(self) -> Iterator[None]:
        """TensorBoard's pictures of a run are not worth the run: a failure is told once."""
        try:
            yield
        except OSError as error:
            self._board = None
            logger.warning(
                "TensorBoard's files cannot be written: %s; going on without", error.strerror
            )
