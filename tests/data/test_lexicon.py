"""IBM model 1 against its definition in plain loops."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lightconv_mt.data import lexicon
from lightconv_mt.data.lexicon import Lexicon, learn_lexicon

EOS, VOCAB = 2, 40
Row = NDArray[np.int32]


class Pairs:
    """Pairs in memory, as `EncodedPairs` gives them."""

    def __init__(self, rows: list[tuple[list[int], list[int]]]) -> None:
        self.rows = [tuple(np.array(side, np.int32) for side in row) for row in rows]
        self.src_lengths, self.tgt_lengths = (
            np.array([len(row[side]) for row in self.rows], np.int32) for side in (0, 1)
        )

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, indices: list[int]) -> list[Any]:
        return [self.rows[index] for index in indices]


def pairs_of(count: int) -> Any:
    """Target token t comes from source token t - 10, in any order, with some noise."""
    generator = np.random.default_rng(1)
    rows = []
    for _ in range(count):
        src = generator.integers(4, 24, generator.integers(1, 9)).tolist()
        tgt = [each + 10 for each in generator.permutation(src).tolist()]
        rows.append(([*src, EOS], [*tgt, *generator.integers(34, 38, 1).tolist(), EOS]))
    return Pairs([*rows, ([7, EOS], [EOS])])


def plain(rows: list[tuple[Row, Row]], iterations: int) -> dict[tuple[int, int], float]:
    table: dict[tuple[int, int], float] = defaultdict(lambda: 1.0)
    for _ in range(iterations):
        counts: dict[tuple[int, int], float] = defaultdict(float)
        totals: dict[int, float] = defaultdict(float)
        for src, tgt in rows:
            for target in tgt[:-1].tolist():
                whole = sum(table[source, target] for source in src.tolist())
                for source in src.tolist():
                    counts[source, target] += table[source, target] / whole
                    totals[source] += table[source, target] / whole
        table = defaultdict(float)
        for (source, target), count in counts.items():
            table[source, target] = count / totals[source]
    return table


@pytest.mark.parametrize("at_once", [1, 50, 10**6])
def test_probabilities_are_those_of_the_definition(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lexicon, "PAIRS_AT_ONCE", at_once)
    monkeypatch.setattr(lexicon, "LEAST_PROBABILITY", 0.0)
    pairs = pairs_of(60)
    for iterations in (1, 3):
        found = learn_lexicon(pairs, tgt_vocab_size=VOCAB, iterations=iterations)
        expected = plain(pairs.rows, iterations)
        assert len(found.keys) == len(expected)
        for key, value in zip(found.keys.tolist(), found.values.tolist(), strict=True):
            assert value == pytest.approx(expected[divmod(key, VOCAB)], rel=1e-9)


def test_translations_are_found_also_with_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexicon, "PAIRS_AT_ONCE", 500)
    pairs = pairs_of(400)
    for room in (10**6, 250):
        monkeypatch.setattr(lexicon, "MOST_ENTRIES", room)
        found = learn_lexicon(pairs, tgt_vocab_size=VOCAB)
        assert len(found.keys) <= room
        best = found.best(VOCAB, 3, fill=EOS)
        assert best[4:24, 0].tolist() == list(range(14, 34))
        assert set(best[EOS].tolist()) <= {34, 35, 36, 37}  # what comes from no token
        assert (best[24:] == EOS).all()


def test_pairs_are_taken_from_everywhere() -> None:
    rows = [([4, EOS], [5, EOS])] * 50 + [([6, EOS], [7, EOS])] * 50
    pairs: Any = Pairs(rows)
    few = learn_lexicon(pairs, tgt_vocab_size=VOCAB, most_pairs=4)
    assert set((few.keys // VOCAB).tolist()) == {4, 6, EOS}


def test_equal_ones_come_by_id() -> None:
    keys = np.array([4 * VOCAB + target for target in (9, 11, 30)])
    found = Lexicon(keys, np.array([0.2, 0.4, 0.2]), VOCAB)
    assert found.best(6, 2, fill=EOS)[4].tolist() == [11, 9]
