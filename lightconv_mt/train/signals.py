"""Signals that ask training to save and stop."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


class InterruptedWorkError(Exception):
    """Work that changes nothing was cut short by a signal."""


class SignalFlag:
    """Context that notes stopping signals instead of dying; a second one acts at once."""

    def __init__(self) -> None:
        """Nothing received yet."""
        self.received: signal.Signals | None = None
        self._raises = False
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """What the process should exit with: 128 + the signal's number, 0 without one."""
        return 128 + self.received if self.received else 0

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Around work without lasting effect: a signal, noted already or to come, ends it at once.

        Raises:
            InterruptedWorkError: when there is one.
        """
        self._raises = True
        try:
            if self.received:
                raise InterruptedWorkError
            yield
        finally:
            self._raises = False

    def __enter__(self) -> "SignalFlag":
        """Install the handlers."""
        self._previous = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the handlers found before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        logger.warning(
            "%s: finishing the step and saving; once more stops at once", self.received.name
        )
        for each in STOPPING:
            signal.signal(each, signal.SIG_DFL)
        if self._raises:
            raise InterruptedWorkError
