"""What a run says of itself: log lines or a progress bar, metrics.jsonl, TensorBoard."""

import json
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


class Monitor:
    """Writes a run's numbers; metrics.jsonl holds no times, so resuming repeats it to the byte."""

    def __init__(self, run_dir: Path, *, step: int, max_steps: int) -> None:
        """Open the files and drop lines written after the step that training resumes from.

        Args:
            run_dir: of the run.
            step: steps done so far.
            max_steps: for the progress bar, shown on a terminal only.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._path = run_dir / "metrics.jsonl"
        kept = [line for line in _whole_lines(self._path) if _step_of(line) <= step]
        self._path.write_text("".join(kept))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)
        self._bar = tqdm(
            total=max_steps,
            initial=step,
            unit="step",
            file=sys.stderr,
            disable=None,
            dynamic_ncols=True,
        )

    def advance(self) -> None:
        """Count one step on the progress bar."""
        self._bar.update()

    def metrics(
        self, step: int, values: Mapping[str, float], *, timing: Mapping[str, float] | None = None
    ) -> None:
        """Record numbers of a step; `timing` goes to the log and TensorBoard alone."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        shown = {**values, **(timing or {})}
        for tag, value in shown.items():
            self._board.add_scalar(tag, value, step)
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
            self._board.add_text("samples", text, step)
            self._bar.write(text, file=sys.stderr)

    def figures(self, step: int, figures: Mapping[str, "Figure"]) -> None:
        """Show pictures."""
        for tag, figure in figures.items():
            self._board.add_figure(tag, figure, step)

    def close(self) -> None:
        """Flush and close everything."""
        self._bar.close()
        self._file.close()
        self._board.close()


def _whole_lines(path: Path) -> list[str]:
    """Lines that end in a newline: a killed run may leave half of one."""
    if not path.exists():
        return []
    return [
        line
        for line in path.read_text(errors="replace").splitlines(keepends=True)
        if line.endswith("\n")
    ]


def _step_of(line: str) -> float:
    """The step a line belongs to; infinity where a crash left something else."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
