"""Translation at a terminal: a prompt for each line, whose translation comes at once."""

import logging
import sys
from collections.abc import Iterator

from lightconv_mt.data.lines import decode_line

PROMPT = "> "

logger = logging.getLogger(__name__)


def at_terminal() -> bool:
    """Whether lines come from a keyboard and go to a screen."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def prompted_lines() -> Iterator[str]:
    """Lines typed at the terminal, each asked for when the one before it is dealt with.

    The prompt goes to standard error, so that the output is translations alone. Ctrl-D at the
    beginning of a line ends; the shell's prompt then stands on a line of its own.
    """
    logger.info("type a line to translate it; Ctrl-D ends")
    try:
        while raw := _ask():
            yield decode_line(raw)[0]
    finally:
        sys.stderr.write("\n")


def _ask() -> bytes:
    """The next line with its end, nothing where there is none."""
    sys.stderr.write(PROMPT)
    sys.stderr.flush()
    return sys.stdin.buffer.readline()
