"""What a search did, read back into hypotheses at its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightconv_mt.decode.config import DecodeConfig, length_penalty


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

    Row n at position p of a step's layout continues row `rows[n]` of the layout at p - 1.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []
        self.endings: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def extend(self, rows: Tensor, tokens: Tensor, totals: Tensor) -> None:
        """Continue `rows` (N,) of the last layout by `tokens` (N,), reaching totals (B, beam)."""
        self.steps.append((rows, tokens, totals.flatten()))

    def end(
        self, position: int, final: Tensor, sentences: Tensor, parents: Tensor, scores: Tensor
    ) -> None:
        """Note that EOS follows `position` tokens where final (B, beam) is set."""
        places = final.nonzero()
        if len(places):
            sentence, rank = places.unbind(1)
            row = sentence * final.shape[1] + parents[sentence, rank]
            length = torch.full_like(row, position)
            self.endings.append((length, sentences[sentence], row, scores[sentence, rank]))

    def hypotheses(
        self, num_sentences: int, eos: int, config: DecodeConfig
    ) -> list[list[Hypothesis]]:
        """Read the config.nbest best of each sentence; equal scores as they ended."""
        found: list[list[Hypothesis]] = [[] for _ in range(num_sentences)]
        if not self.endings:
            return found
        length, sentence, row, total = _joined(self.endings)
        divisors = np.array([length_penalty(n + 1, config) for n in range(length.max() + 1)])
        score = total / divisors[length]
        order = np.lexsort((-score, sentence))
        first = np.searchsorted(sentence[order], np.arange(num_sentences))
        order = order[np.arange(len(order)) - first[sentence[order]] < config.nbest]

        tokens, totals = self._read(length[order], row[order], total[order], eos)
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
        self,
        length: NDArray[np.int64],
        row: NDArray[np.int64],
        total: NDArray[np.float64],
        eos: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Tokens and running totals, (hypotheses, longest + 1), of those that ended as given."""
        tokens = np.full((len(length), length.max() + 1), eos)
        totals = np.zeros(tokens.shape)
        totals[np.arange(len(length)), length] = total
        if self.steps:
            parents, words, sums = _joined(self.steps)
            starts = np.cumsum([0, *(len(step[0]) for step in self.steps)])
            for position in range(length.max(), 0, -1):
                alive = length >= position
                place = starts[position - 1] + row[alive]
                tokens[alive, position - 1] = words[place]
                totals[alive, position - 1] = sums[place]
                row[alive] = parents[place]
        return tokens, totals


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> list[NDArray[Any]]:
    return [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
