"""Signals that ask training to save and stop."""

import logging
import signal
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

STOPPING = (signal.SIGINT, signal.SIGTERM)


class SignalFlag:
    """Context that notes SIGINT and SIGTERM instead of dying; a second one acts at once."""

    def __init__(self) -> None:
        """Nothing received yet."""
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """What the process should exit with: 128 + the signal's number, 0 without one."""
        return 128 + self.received if self.received else 0

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
