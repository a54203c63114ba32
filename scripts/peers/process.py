"""The other end of the protocol: starts the process of a side and lets it train by the window."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from costs.machine import fastest
from lightconv_mt.errors import LcmtError

SECONDS_TO_END = 60.0
LAST_LINES = 15  # of a log, shown when its process ends
GAUGE = 1024  # rows and columns of the product that tells how fast the machine is just now


class SideError(LcmtError):
    """The process of a side ended, or said what it should not."""


@dataclass(frozen=True)
class Window:
    """What a side did on one command.

    Attributes:
        tokens: real target tokens of the updates that were timed.
        seconds: they took.
        done: target tokens, label-smoothed loss and likelihood, summed, of every update.
        peak_megabytes: the most that was resident so far.
        other_load: cores in use by everything else meanwhile; NaN where there is no /proc.
        products: multiply-adds a second of a float32 product of torch just before, with the threads
            of this process: a virtual machine's other guests are in no load, but they slow it down.
    """

    tokens: int
    seconds: float
    done: list[tuple[int, float, float]]
    peak_megabytes: float
    other_load: float
    products: float

    @property
    def speed(self) -> float:
        """Target tokens a second."""
        return self.tokens / self.seconds


class SideProcess:
    """A process that trains on command."""

    def __init__(
        self, name: str, command: Sequence[str], environment: dict[str, str], log: Path
    ) -> None:
        """Start it, and wait until it could train.

        Args:
            name: what errors call it.
            command: of the process.
            environment: its variables, all of them.
            log: file for what it prints.

        Raises:
            SideError: with the end of the log, when it ends instead.
        """
        self._name, self._log = name, log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        self.about: dict[str, Any] = self._answer()

    def train(self, *, warm: int, updates: int) -> Window:
        """Let it make `warm` updates, and `updates` more by the clock.

        Raises:
            SideError: with the end of the log, when it ends instead.
        """
        products = _products()
        before = _machine_seconds()
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"warm": warm, "updates": updates}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it says why in its log
        answer = self._answer()
        busy, passed = (
            after - then for after, then in zip(_machine_seconds(), before, strict=True)
        )
        return Window(
            tokens=answer["tokens"],
            seconds=answer["seconds"],
            done=[(tokens, loss, nll) for tokens, loss, nll in answer["done"]],
            peak_megabytes=answer["peak_megabytes"],
            other_load=max(0.0, busy - answer["cpu_seconds"]) / passed if passed else float("nan"),
            products=products,
        )

    def close(self) -> int:
        """End it; its exit code."""
        try:
            self._process.communicate(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        return self._process.returncode

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.close()
        said = self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        raise SideError("\n".join([f"{self._name} ended with exit code {code}; it said:", *said]))


def _products() -> float:
    one, other = torch.ones(2, GAUGE, GAUGE)
    return GAUGE**3 / fastest(lambda: one @ other, one.device)


def _machine_seconds() -> tuple[float, float]:
    """Seconds that all cores worked, and that passed on one of them, since the machine started."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0, 0.0
    lines = path.read_text().splitlines()
    cores = sum(line.startswith("cpu") for line in lines) - 1
    user, nice, system, idle, waiting, interrupts, soft, stolen = map(int, lines[0].split()[1:9])
    busy = user + nice + system + interrupts + soft + stolen
    return busy / 100, (busy + idle + waiting) / 100 / cores
