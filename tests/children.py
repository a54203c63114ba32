"""Processes that tests start, watch and kill.

They are forked from a server that imports the package and runs nothing: a fork of the test's own
process would lack the threads that earlier tests have started there, and could wait for them for
ever. What a child calls is pickled by name, so it stands in the package or beside this module.
"""

import contextlib
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

INTERRUPTED = 130

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["lightconv_mt.training"])


def start(*calls: Callable[[], object]) -> ForkServerProcess:
    """Make the calls in a child that leads a process group of its own; returns once it is about to.

    It ends with the number that the last call returns, or 0; 130 after an interrupt, 1 after any
    other exception.
    """
    ready, sender = SERVER.Pipe(duplex=False)
    child = SERVER.Process(target=_make, args=(sender, calls))
    child.start()
    sender.close()
    ready.recv()
    return child


def exit_code(child: ForkServerProcess) -> int:
    """Wait for the end of a child; that of a killed one is the signal's number below 0."""
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def assert_none_outlives(child: ForkServerProcess) -> None:
    """Wait until all that a child has started is gone too, half a minute at most."""
    deadline = time.monotonic() + 30.0
    while left := _running(child.pid):
        assert time.monotonic() < deadline, f"processes {left} outlive the one that started them"
        time.sleep(0.05)


def _running(group: int | None) -> list[int]:
    """Processes of a group, those left aside that have ended and wait for someone to notice."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


def _make(sender: Connection, calls: tuple[Callable[[], object], ...]) -> None:
    code = 1
    try:
        os.setsid()
        set_start_method(None, force=True)  # what a child starts, it starts as a user's does
        sender.send(None)
        values = [call() for call in calls]
        code = values[-1] if isinstance(values[-1], int) else 0
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
