"""Lines longer than a model can read: cut into parts that it can, and their outputs joined."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from heapq import nlargest
from itertools import product

# One output of a line: its text and its score.
Scored = tuple[str, float]
# Ids of the pieces of each of several texts.
Encode = Callable[[Sequence[str]], list[list[int]]]


class LongLines(Enum):
    """What happens to lines longer than the model reads: their end is left out, or in parts."""

    truncate = "truncate"
    split = "split"


# A sentence ends behind its mark and what closes it; East Asian marks need no space after them.
# Each place is looked at once, however long a run of marks: no second try from within one.
_SENTENCE_END = re.compile(r"(?<![.?!])[.?!]++[\"')\]}»”’]*+\s++|[。！？]++[」』”’）]*+\s*+")
_SPACE = re.compile(r"\s+")
# Thai, Lao, Tibetan, Burmese, Khmer; Chinese and Japanese with their punctuation; full-width forms.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class Parts:
    """Lines with the long ones in parts.

    Attributes:
        texts: all parts of all lines, in order.
        lines: the line of each, counted from 0.
        places: the place of each in its line.
        pieces: ids of each.
    """

    texts: list[str]
    lines: list[int]
    places: list[int]
    pieces: list[list[int]]


def cut_lines(lines: Sequence[str], encode: Encode, limit: int) -> Parts:
    """Cut the lines of more than `limit` pieces; all others are one part as they are.

    Args:
        lines: any text.
        encode: ids of the pieces of each of several texts.
        limit: pieces of a part, at most; only a single character may have more.
    """
    parts = Parts([], [], [], [])
    for number, (line, ids) in enumerate(zip(lines, encode(lines), strict=True)):
        whole = len(ids) <= limit or not line.strip()
        found = [(line, ids)] if whole else cut_line(line, encode, limit)
        parts.texts.extend(text for text, _ in found)
        parts.pieces.extend(pieces for _, pieces in found)
        parts.lines.extend([number] * len(found))
        parts.places.extend(range(len(found)))
    return parts


def cut_line(line: str, encode: Encode, limit: int) -> list[tuple[str, list[int]]]:
    """Cut one line at the ends of its sentences, these at spaces, and these anywhere.

    A sentence that is too long is halved until its parts are not. Spaces at a cut are dropped.

    Returns:
        Text and ids of each part.
    """
    found: list[tuple[str, list[int]]] = []
    sentences = _sentences(line)
    for sentence in zip(sentences, encode(sentences), strict=True):
        waiting = [sentence]
        while waiting:
            text, ids = waiting.pop()
            if len(ids) <= limit or len(text) < 2:
                found.append((text, ids))
                continue
            halves = _halves(text)
            waiting.extend(reversed(list(zip(halves, encode(halves), strict=True))))
    return found


def join_outputs(parts: Sequence[Sequence[Scored]], nbest: int) -> list[Scored]:
    """The best outputs of a line, whose scores are the sums of those of its parts.

    Args:
        parts: the outputs of each part, best first, at least one.
        nbest: how many to give at most.

    Returns:
        Joined outputs, best first.
    """
    sums = [0.0]
    choices: list[list[tuple[int, int]]] = []  # of each part: rank before it, and its own
    for part in parts:
        pairs = product(range(len(sums)), range(len(part)))
        best = nlargest(nbest, pairs, key=lambda two: sums[two[0]] + part[two[1]][1])
        sums = [sums[before] + part[own][1] for before, own in best]
        choices.append(best)
    joined = []
    for rank, total in enumerate(sums):
        texts = []
        for part, best in zip(reversed(parts), reversed(choices), strict=True):
            rank, own = best[rank]
            texts.append(part[own][0])
        joined.append((join_texts(texts[::-1]), total))
    return joined


def join_texts(texts: Sequence[str]) -> str:
    """Outputs with spaces between them, unless their script has none."""
    joined: list[str] = []
    for text in filter(None, texts):
        if joined and not (_WITHOUT_SPACES.match(joined[-1][-1]) or _WITHOUT_SPACES.match(text)):
            joined.append(" ")
        joined.append(text)
    return "".join(joined)


def word_offsets(parts: Sequence[str], whole: str) -> list[int]:
    """The word of a text, counted from 0, in which each of its parts begins.

    Args:
        parts: what `cut_line` made of the text, or `join_texts` made it of.
        whole: words with whitespace between them.
    """
    offsets = []
    place = words = 0
    for part in parts:
        start = whole.index(part, place)
        # A part may go on with a word that was cut.
        goes_on = bool(part) and start > 0 and not whole[start - 1].isspace()
        offsets.append(words - goes_on)
        place, words = start + len(part), offsets[-1] + len(part.split())
    return offsets


def _sentences(line: str) -> list[str]:
    """The sentences of a line, without the spaces around them."""
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    texts = (line[start:end].strip() for start, end in zip([0, *ends], [*ends, None], strict=True))
    return [text for text in texts if text]


def _halves(text: str) -> list[str]:
    """Both parts of a text of two or more characters, cut at the space nearest its middle."""
    middle = len(text) // 2
    start, end = min(
        (match.span() for match in _SPACE.finditer(text)),
        key=lambda span: abs(sum(span) - len(text)),
        default=(middle, middle),
    )
    return [text[:start], text[end:]]
