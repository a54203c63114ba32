"""Which runs a sweep has, and training them: several at a time, what is finished never again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import FrameType

from hydra.core.override_parser.overrides_parser import OverridesParser

from lightconv_mt.cli import ROOTS
from lightconv_mt.compose import compose
from lightconv_mt.errors import ConfigError
from lightconv_mt.run_folder import writing
from lightconv_mt.schemas import read_root
from lightconv_mt.typed import build_typed
from lightconv_mt.whole_files import replace_text

PROGRAM = "import sys; from lightconv_mt.cli import train; sys.exit(train())"
DONE, DIVERGED = 0, 5  # exit codes of lcmt-train that are results
NOTE = "sweep.json"
# In a folder's name whether swept or not, so that one more choice leaves the others theirs.
NAMED = ("experiment", "variant", "model/mixer", "seed")


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        row: the line of the table that it belongs to, of the choices without the seed.
        words: what lcmt-train is called with, but for run_dir.
        folder: its run_dir.
    """

    row: str
    words: tuple[str, ...]
    folder: Path

    def result(self) -> int | None:
        """Exit code with which this very run ended for good; None while it has to go on."""
        try:
            note = json.loads((self.folder / NOTE).read_text())
            return int(note["exit_code"]) if note["words"] == [*self.words] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def list_runs(out: Path, words: Sequence[str]) -> list[Run]:
    """One run for each combination of the values that words give, as --multirun takes them.

    Args:
        out: the folder of all runs.
        words: such as experiment=multi30k_tiny variant=conv,lightconv seed=1,2,3.

    Raises:
        ConfigError: when a word cannot be read, or run_dir is among them.
    """
    choices: list[list[str]] = []
    for word in words:
        key = word.partition("=")[0]
        if key.lstrip("+") == "run_dir":
            raise ConfigError(f"{word}: each run has a folder of its own, below {out}")
        try:
            override = OverridesParser.create().parse_override(word)
        except Exception as error:  # the parser's own, with a stack of causes
            raise ConfigError(f"{word!r} cannot be read as key=value") from error
        values = [*override.sweep_string_iterator()] if override.is_sweep_override() else None
        choices.append(
            [f"{word.partition('=')[0]}={value}" for value in values] if values else [word]
        )
    keys = [values[0].partition("=")[0].lstrip("+") for values in choices]
    runs = []
    for combination in product(*choices):
        varied = [word for word, values in zip(combination, choices, strict=True) if values[1:]]
        names = [word.partition("=")[2] for word in varied if not word.startswith("seed=")]
        named = [
            word.replace("/", "_")
            for word, key in zip(combination, keys, strict=True)
            if key in NAMED or word in varied
        ]
        folder = out / (",".join(named) or "run")
        runs.append(Run(row=" ".join(names) or "all", words=combination, folder=folder))
    return runs


def check_words(run: Run) -> None:
    """Raise ConfigError for words that lcmt-train would refuse."""
    root, registers = read_root(ROOTS["train"])
    words = [*run.words, f"run_dir={run.folder}"]
    for plain in compose("train", words, root=root, registers=registers):
        build_typed(root, plain, registers=registers)


def train_runs(runs: Sequence[Run], *, jobs: int) -> dict[Run, int]:
    """Train what is not finished, `jobs` at a time; the same call goes on where it was stopped.

    Output goes to `log.txt` in each run's folder. A signal is passed on to the runs, which save.

    Returns:
        Exit codes of lcmt-train; after a signal, of those that ended so far.

    Raises:
        ConfigError: when a run's folder cannot be made.
    """
    codes = {run: code for run in runs if (code := run.result()) is not None}
    waiting = [run for run in runs if run not in codes]
    active: dict[Run, tuple[subprocess.Popen[bytes], float]] = {}
    received: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        for child, _started in active.values():
            child.send_signal(number)

    previous = {each: signal.signal(each, pass_on) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        while active or (waiting and not received):
            while waiting and not received and len(active) < jobs:
                run = waiting.pop(0)
                active[run] = _start(run), time.monotonic()
            time.sleep(0.1)
            for run, code, seconds in _ended(active):
                codes[run] = code
                print(f"{run.folder.name}: {_outcome(code)} after {seconds:.0f} s", flush=True)
                if code in (DONE, DIVERGED):
                    note = {"words": [*run.words], "exit_code": code}
                    replace_text(run.folder / NOTE, json.dumps(note) + "\n")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt(received[0])
    return codes


def _start(run: Run) -> "subprocess.Popen[bytes]":
    with writing(run.folder, key="out"):
        run.folder.mkdir(parents=True, exist_ok=True)
    print(f"{run.folder.name}: training, see {run.folder / 'log.txt'}", flush=True)
    with (run.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *run.words, f"run_dir={run.folder}"],
            stdout=log,
            stderr=log,
            # Ctrl-C reaches this process alone, which passes it on once.
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )


def _ended(
    active: dict[Run, tuple["subprocess.Popen[bytes]", float]],
) -> Iterator[tuple[Run, int, float]]:
    for run, (child, started) in [*active.items()]:
        code = child.poll()
        if code is not None:
            del active[run]
            yield run, 128 - code if code < 0 else code, time.monotonic() - started


def _outcome(code: int) -> str:
    if code == DONE:
        return "finished"
    return "diverged" if code == DIVERGED else f"ended with exit code {code}"
