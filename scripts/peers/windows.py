"""A side's end of the protocol: train a window of updates on command, answer, and wait.

Commands come on standard input, answers go to standard output, a line of JSON each. First the side
says what it is; then for {"warm": W, "updates": N} it trains W updates, and N more by the clock.
The end of the input ends the process. All else that is printed goes to standard error.
"""

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class Windows:
    """Counts a loop's updates and holds it where a window ends; made before anything is printed."""

    def __init__(self) -> None:
        """Take standard output away from everybody else."""
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def open(self, about: dict[str, Any]) -> None:
        """Say that training can begin, and wait for the first command.

        Args:
            about: `version` of the toolkit, `parameters` of the model, `target_tokens` of an epoch.
        """
        self._answer(about)
        self._wait()

    def update(self, tokens: int, loss: float, nll: float) -> None:
        """Note an update, called as soon as it is done; returns when there is to be another one.

        Args:
            tokens: real target tokens, EOS included.
            loss: label-smoothed cross-entropy in nats, summed over them.
            nll: negative log-likelihood in nats, summed over them.
        """
        now = time.perf_counter()
        self._done.append((tokens, loss, nll))
        if len(self._done) == self._warm:
            self._started = now
        if len(self._done) == self._warm + self._updates:
            self._answer(
                {
                    "seconds": now - self._started,
                    "tokens": sum(each for each, _, _ in self._done[self._warm :]),
                    "done": self._done,
                    "cpu_seconds": time.process_time() - self._cpu_started,
                    "peak_megabytes": peak_megabytes(),
                }
            )
            self._wait()

    def _answer(self, values: dict[str, Any]) -> None:
        give_back_memory()
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        command = json.loads(line)
        self._warm, self._updates = command["warm"], command["updates"]
        self._done: list[tuple[int, float, float]] = []
        self._cpu_started = time.process_time()
        self._started = time.perf_counter()


def give_back_memory() -> None:
    """Let the others have what is free here: all sides wait in memory while one trains.

    The untimed updates of the next window take it again.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_megabytes() -> float:
    """The most that was ever resident of this process; NaN where there is no /proc."""
    path = Path("/proc/self/status")  # getrusage would count the parent from before exec, too
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if "VmHWM" in line), float("nan"))
