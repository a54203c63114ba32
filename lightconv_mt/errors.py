"""Errors a user can fix; the command line prints them as one line, without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class LcmtError(Exception):
    """Base of every error whose message tells a user what to do.

    The message says what was given, where, and what to do. `exit_code` is what the commands exit
    with.
    """

    exit_code = 1


class ConfigError(LcmtError):
    """A configuration value is missing, unknown, of the wrong type or contradicts another one."""

    exit_code = 2


class DataError(LcmtError):
    """Text, a tokenizer or a test set cannot be read, or does not fit together."""

    exit_code = 3


class CheckpointError(LcmtError):
    """A run folder or checkpoint is missing, damaged or belongs to another configuration."""

    exit_code = 4


class DivergenceError(LcmtError):
    """Training produced non-finite numbers again and again and was stopped."""

    exit_code = 5


class MemoryLimitError(LcmtError):
    """There is not enough memory, be it for a single sentence."""

    exit_code = 6


class ProcessError(LcmtError):
    """Another process of the same training run is gone or does not answer."""

    exit_code = 7


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch says that there was not enough memory."""
    gpu = type(error).__name__ == "OutOfMemoryError"  # torch's; torch may not be imported yet
    # What torch raises on CPUs has no class of its own.
    return isinstance(error, MemoryError) or gpu or "DefaultCPUAllocator" in str(error)


def suggest(given: str, options: Iterable[str]) -> str:
    """The nearest option as a question, or all of them, as the end of an error message."""
    names = sorted(options)
    close = get_close_matches(given, names, n=1)
    return f"did you mean {close[0]}?" if close else f"choose one of {', '.join(names)}"
