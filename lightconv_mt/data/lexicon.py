"""What a source token is translated to: a table of probabilities learnt from encoded pairs."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightconv_mt.data.encoded import EncodedPairs

# Of the libraries that learn such tables, nltk's loops are in Python, and those around fast_align
# and eflomal read files of words and have had no release since 2023 and 2024.

PAIRS_AT_ONCE = 2_000_000  # of a source and a target token; each takes some 60 bytes
MOST_ENTRIES = 10_000_000  # that a table has room for, 16 bytes each
LEAST_PROBABILITY = 1e-5  # what is rarer leaves the table

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lexicon:
    """Probabilities of target tokens given a source token.

    Attributes:
        keys: (E,) source token x tgt_vocab_size + target token, ascending.
        values: (E,) probability of each.
        tgt_vocab_size: target tokens that there are.
    """

    keys: Integers
    values: Floats
    tgt_vocab_size: int

    def best(self, src_vocab_size: int, count: int, *, fill: int) -> NDArray[np.int32]:
        """The `count` likeliest target tokens of each source token, equal ones by id.

        Returns:
            (src_vocab_size, count), best first, `fill` where there are fewer.
        """
        sources = self.keys // self.tgt_vocab_size
        order = np.lexsort((-self.values, sources))
        starts = np.searchsorted(sources, np.arange(src_vocab_size))
        rank = np.arange(len(order)) - starts[sources]
        order, rank = order[rank < count], rank[rank < count]
        found = np.full((src_vocab_size, count), fill, np.int32)
        found[sources[order], rank] = self.keys[order] % self.tgt_vocab_size
        return found


def learn_lexicon(
    pairs: EncodedPairs, *, tgt_vocab_size: int, iterations: int = 5, most_pairs: int = 1_000_000
) -> Lexicon:
    """Learn a lexicon by expectation maximisation of IBM model 1 (Brown et al., 1993, section 4).

    Every target token but EOS comes from one token of its source; the EOS of the source stands for
    what comes from none. The first probabilities are all equal, so the first iteration counts how
    often tokens are seen together. If there are more kinds of pairs than MOST_ENTRIES, the rarest
    are dropped on the way.

    Args:
        pairs: of training.
        tgt_vocab_size: V of the target side.
        iterations: of expectation maximisation, 1 or more.
        most_pairs: sentence pairs to learn from, spread over all.
    """
    count = min(len(pairs), most_pairs)
    chosen = np.linspace(0, len(pairs), num=count, endpoint=False).astype(np.int64)
    empty = np.zeros(0)
    lexicon = Lexicon(empty.astype(np.int64), empty, tgt_vocab_size)
    for iteration in range(iterations):
        keys, counts = lexicon.keys, np.zeros(len(lexicon.keys))
        for sources, targets, widths in _seen_together(pairs, chosen):
            own, place = np.unique(sources * tgt_vocab_size + targets, return_inverse=True)
            there, known = _places(keys, own)
            likely = (lexicon.values[there] * known)[place] if iteration else np.ones(len(place))
            ends = np.cumsum(widths)
            sums = np.add.reduceat(likely, ends - widths)
            likely /= np.repeat(np.maximum(sums, np.finfo(np.float64).tiny), widths)
            expected: Floats = np.bincount(place, likely).astype(np.float64)
            if iteration:
                counts[there[known]] += expected[known]
            else:
                keys, counts = _merged(keys, counts, own, expected)
        lexicon = _normalised(keys, counts, tgt_vocab_size)
    return lexicon


def _seen_together(
    pairs: EncodedPairs, chosen: Integers
) -> Iterator[tuple[Integers, Integers, Integers]]:
    """Source and target token of each pair of tokens, part by part; targets' EOS is left out.

    The third array has, for each target token in turn, how many pairs it stands in.
    """
    sizes = pairs.src_lengths[chosen].astype(np.int64) * pairs.tgt_lengths[chosen]
    parts = np.cumsum(sizes) // PAIRS_AT_ONCE
    for some in np.split(chosen, np.flatnonzero(np.diff(parts)) + 1):
        rows = pairs.get(some.tolist())
        widths = np.array([len(src) for src, _ in rows]).repeat([len(tgt) - 1 for _, tgt in rows])
        if not len(widths):
            continue
        sources = np.concatenate([np.tile(src, len(tgt) - 1) for src, tgt in rows])
        targets = np.concatenate([tgt[:-1] for _, tgt in rows]).repeat(widths)
        yield sources.astype(np.int64), targets.astype(np.int64), widths


def _places(keys: Integers, wanted: Integers) -> tuple[Integers, NDArray[np.bool_]]:
    """Where wanted keys stand, and whether they do."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    there = np.minimum(keys.searchsorted(wanted), len(keys) - 1)
    return there, keys[there] == wanted


def _merged(
    keys: Integers, counts: Floats, others: Integers, more: Floats
) -> tuple[Integers, Floats]:
    """Sums of two tables of counts; the rarest keys leave if there are too many."""
    both, place = np.unique(np.concatenate([keys, others]), return_inverse=True)
    sums = np.zeros(len(both))
    np.add.at(sums, place, np.concatenate([counts, more]))
    if len(both) > MOST_ENTRIES:
        kept = np.sort(np.argpartition(-sums, MOST_ENTRIES // 2)[: MOST_ENTRIES // 2])
        both, sums = both[kept], sums[kept]
    return both, sums


def _normalised(keys: Integers, counts: Floats, tgt_vocab_size: int) -> Lexicon:
    sources = keys // tgt_vocab_size
    values = counts / np.maximum(np.bincount(sources, counts), np.finfo(np.float64).tiny)[sources]
    kept = values >= LEAST_PROBABILITY
    return Lexicon(keys[kept], values[kept], tgt_vocab_size)
