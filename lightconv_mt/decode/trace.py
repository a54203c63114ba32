"""What a search did, read back into hypotheses at its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightconv_mt.decode.config import DecodeConfig, length_penalty

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Hypothesis:
    """One finished output.

    Attributes:
        tokens: ids with EOS at the end, without BOS.
        score: sum of token_scores divided by the length penalty.
        token_scores: log-probability of each token (natural logarithm), penalties included.
    """

    tokens: tuple[int, ...]
    score: float
    token_scores: tuple[float, ...]


class Trace:
    """Which row continued which; read back once at the end, so a step costs the same at any length.

    Row n of the layout that a step leaves continues row `rows[n]` of the layout that it found.
    Sentences that enter append their rows to the layout.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.steps: list[tuple[Integers, Integers, Floats]] = []
        self.starts: list[int] = []
        self.endings: list[tuple[Integers, Integers, Integers, Floats]] = []

    def enter(self, count: int) -> Integers:
        """Let sentences in before the next step; returns their numbers (count,)."""
        first = len(self.starts)
        self.starts += [len(self.steps)] * count
        return np.arange(first, first + count)

    def extend(self, rows: Integers, tokens: Integers, totals: Floats) -> None:
        """Continue `rows` (N,) of the last layout by `tokens` (N,), reaching totals (B, beam)."""
        self.steps.append((rows, tokens, totals.flatten()))

    def end(
        self, final: NDArray[np.bool_], sentences: Integers, parents: Integers, scores: Floats
    ) -> None:
        """Note that EOS follows row `parents` of sentence `sentences` (B,) where final (B, beam).

        Scores (B, beam) are their totals.
        """
        sentence, rank = final.nonzero()
        if len(sentence):
            row = sentence * final.shape[1] + parents[sentence, rank]
            step = np.full_like(row, len(self.steps))
            self.endings.append((step, sentences[sentence], row, scores[sentence, rank]))

    def hypotheses(self, eos: int, config: DecodeConfig) -> list[list[Hypothesis]]:
        """Read the config.nbest best of each sentence; equal scores as they ended."""
        found: list[list[Hypothesis]] = [[] for _ in self.starts]
        if not self.endings:
            return found
        step, sentence, row, total = _joined(self.endings)
        start = np.array(self.starts)[sentence]
        length = step - start
        divisors = np.array([length_penalty(n + 1, config) for n in range(length.max() + 1)])
        score = total / divisors[length]
        order = np.lexsort((-score, sentence))
        first = np.searchsorted(sentence[order], np.arange(len(self.starts)))
        order = order[np.arange(len(order)) - first[sentence[order]] < config.nbest]

        tokens, totals = self._read(start[order], length[order], row[order], total[order], eos)
        token_scores = np.diff(totals, prepend=0.0)
        for n, index in enumerate(order):
            end = length[index] + 1
            hypothesis = Hypothesis(
                tokens=tuple(tokens[n, :end].tolist()),
                score=float(score[index]),
                token_scores=tuple(token_scores[n, :end].tolist()),
            )
            found[sentence[index]].append(hypothesis)
        return found

    def _read(
        self, start: Integers, length: Integers, row: Integers, total: Floats, eos: int
    ) -> tuple[Integers, Floats]:
        """Tokens and running totals, (hypotheses, longest + 1), of those that ended as given."""
        tokens = np.full((len(length), length.max() + 1), eos)
        totals = np.zeros(tokens.shape)
        totals[np.arange(len(length)), length] = total
        if self.steps:
            parents, words, sums = _joined(self.steps)
            offsets = np.cumsum([0, *(len(step[0]) for step in self.steps)])
            for step in range(int((start + length).max()) - 1, -1, -1):
                (alive,) = ((start <= step) & (step < start + length)).nonzero()
                place = offsets[step] + row[alive]
                tokens[alive, step - start[alive]] = words[place]
                totals[alive, step - start[alive]] = sums[place]
                row[alive] = parents[place]
        return tokens, totals


def _joined(parts: Sequence[tuple[NDArray[Any], ...]]) -> list[NDArray[Any]]:
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
