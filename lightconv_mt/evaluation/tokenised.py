"""Tells text that somebody tokenised, and forgot to put together again, by the marks it bears."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class _Mark:
    """What tokenisation leaves behind, and in which share of lines it is no accident any more."""

    pattern: re.Pattern[str]
    share: float
    words: str


_MARKS = (
    _Mark(re.compile(r"\S@@(?=\s|$)"), 0.05, "pieces that end in '@@'"),
    _Mark(re.compile(r"(?:^|\s)\u2581"), 0.05, "pieces that begin with '\u2581'"),
    _Mark(
        re.compile(r"\s@[-/,.]@\s|&(?:apos|quot|amp|lt|gt|#124|#91|#93);"),
        0.05,
        "Moses' marks, such as '@-@' or '&apos;'",
    ),
    _Mark(re.compile(r"\s-[LR][RCS]B-(?=\s|$)"), 0.05, "the treebank's brackets, such as '-LRB-'"),
    # French puts spaces before ; : ! ? too, but no language before these.
    _Mark(re.compile(r"\S\s[.,。、，](?=\s|$)"), 0.5, "spaces before full stops or commas"),
)


def signs_of_tokenisation(lines: Sequence[str]) -> str | None:
    """What looks tokenised in lines, how often, and where first; None where nothing does.

    A mark counts when more than a twentieth of the lines that are not empty bear it, spaces before
    punctuation when more than half of them do.
    """
    filled = sum(1 for line in lines if line.strip())
    for mark in _MARKS:
        found = [number for number, line in enumerate(lines, 1) if mark.pattern.search(line)]
        if len(found) > mark.share * filled:
            return f"{mark.words} in {len(found):,} of {filled:,} lines, first in line {found[0]}"
    return None
