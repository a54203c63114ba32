"""From source attention to word alignments: the words of pieces, and links between words."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

Links = tuple[tuple[int, int], ...]

# How far apart pieces and text are looked through for where they agree again.
LONGEST_SKIP = 8
_SKIPS = sorted(
    ((n, m) for n in range(LONGEST_SKIP + 1) for m in range(LONGEST_SKIP + 1) if n or m),
    key=lambda pair: (max(pair), sum(pair)),
)


def link_words(
    weights: Tensor, *, src: Sequence[str], src_text: str, tgt: Sequence[str], tgt_text: str
) -> Links:
    """Link each word of an output to the word of its source that it attends to most.

    The attention between two words is the sum of that between their pieces. Words are what
    whitespace separates in the texts; EOS is none. Among equals the earlier word is taken.

    Args:
        weights: (T, S) float, EOS last on both sides.
        src: the S - 1 pieces of the source, as `BaseTokenizer.spell_text` gives them.
        src_text: the source as it was given; may go on where the pieces end.
        tgt: the T - 1 pieces of the output, as `BaseTokenizer.spell` gives them.
        tgt_text: the output.

    Returns:
        Pairs of (source word, output word), counted from 0, in the order of the output.
    """
    assert weights.shape == (len(tgt) + 1, len(src) + 1), (weights.shape, len(tgt), len(src))
    src_words, tgt_words = place_pieces(src, src_text), place_pieces(tgt, tgt_text)
    if not src_words or not tgt_words:
        return ()
    columns, rows = torch.tensor(src_words), torch.tensor(tgt_words)
    pieces = weights[:-1, :-1].double()
    by_source = pieces.new_zeros(len(tgt), max(src_words) + 1).index_add_(1, columns, pieces)
    by_word = pieces.new_zeros(max(tgt_words) + 1, max(src_words) + 1).index_add_(
        0, rows, by_source
    )
    best = by_word.argmax(1).tolist()
    return tuple((best[word], word) for word in sorted(set(tgt_words)))


def pharaoh(links: Links) -> str:
    """Links as `0-0 1-2`: source word, dash, output word."""
    return " ".join(f"{source}-{output}" for source, output in links)


def place_pieces(pieces: Sequence[str], text: str) -> list[int]:
    """The word of a text, counted from 0, in which each piece begins.

    The characters of the pieces are looked for in the text, one after the other, whatever their
    case; where both disagree, for a tokenizer may have changed the text, the nearest place at which
    they agree again is taken.

    Args:
        pieces: characters of each piece, without spaces; "" takes up none.
        text: words with whitespace between them.

    Returns:
        As many numbers, none if the text has no word.
    """
    words = text.split()
    if not words:
        return []
    ends = list(accumulate(map(len, words)))
    made, said = _folded("".join(pieces)), _folded("".join(words))
    places: list[int] = []  # of each character of the pieces, in the text
    i = j = 0
    while i < len(made):
        if j < len(said) and made[i] != said[j]:
            ahead = LONGEST_SKIP + 2
            skipped, passed = _disagreement(made[i : i + ahead], said[j : j + ahead])
        else:
            skipped, passed = 1, 1
        # What the text has not goes with what stands before it.
        places += [max(0, min(j + n, j + passed - 1)) for n in range(skipped)]
        i, j = i + skipped, j + passed
    starts = accumulate(map(len, pieces), initial=0)
    # A piece without characters goes with what follows it.
    after = [*places, places[-1] + 1 if places else 0]
    return [
        min(bisect_right(ends, after[start]), len(words) - 1)
        for start, _ in zip(starts, pieces, strict=False)
    ]


def _disagreement(made: str, said: str) -> tuple[int, int]:
    """Fewest characters to leave out on both sides so that the next two agree, or the ends."""
    for n, m in _SKIPS:
        if n <= len(made) and m <= len(said) and made[n : n + 2] == said[m : m + 2]:
            return n, m
    return 1, 1


def _folded(text: str) -> str:
    """Lower case, where that leaves the number of characters as it is."""
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)
