"""Random segmentations of a sentence: BPE-dropout and unigram sampling, functions of their seed.

SentencePiece samples too, but salts its generator anew in every process, so a resumed run would
read other pieces than the unbroken one.
"""

import math
from collections.abc import Iterator, Sequence
from random import Random

from sentencepiece import sentencepiece_model_pb2

ModelProto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]  # made on import

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark of a word's beginning
# Longer words are cut where their usual pieces end, so that a sentence costs time linear in it.
LONGEST_WORD = 48


class SubwordSampler:
    """Cuts words into other pieces of the same vocabulary."""

    def __init__(self, model: bytes) -> None:
        """Read a serialised model; any kind but unigram is sampled by BPE-dropout."""
        proto = ModelProto.FromString(model)
        self._pieces: list[str | None] = []  # by id; None for those that are no plain text
        self._ids: dict[str, int] = {}
        self._scores: dict[str, float] = {}
        for number, entry in enumerate(proto.pieces):
            plain = entry.type == ModelProto.SentencePiece.NORMAL
            self._pieces.append(entry.piece if plain else None)
            if plain:
                self._ids[entry.piece], self._scores[entry.piece] = number, entry.score
        self._longest = max(map(len, self._ids), default=1)
        unigram = proto.trainer_spec.model_type == proto.trainer_spec.UNIGRAM
        self._cut = self._unigram if unigram else self._bpe_dropout

    def sample(self, ids: Sequence[int], *, alpha: float, generator: Random) -> list[int]:
        """Draw another segmentation.

        Args:
            ids: the sentence's usual one; words that hold bytes or unknown pieces stay as they are.
            alpha: probability of dropping a merge, or smoothing of the unigram sampler.
            generator: of the random numbers.
        """
        sampled: list[int] = []
        for word in self._words(ids):
            pieces = [self._piece(number) for number in word]
            text = "".join(piece or "" for piece in pieces)
            known = None not in pieces and all(letter in self._ids for letter in text)
            sampled += (
                [self._ids[piece] for piece in self._cut(text, alpha, generator)] if known else word
            )
        return sampled

    def _piece(self, number: int) -> str | None:
        return self._pieces[number] if number < len(self._pieces) else None

    def _words(self, ids: Sequence[int]) -> Iterator[list[int]]:
        word: list[int] = []
        length = 0
        for number in ids:
            piece = self._piece(number) or ""
            if word and (piece.startswith(SPACE) or length + len(piece) > LONGEST_WORD):
                yield word
                word, length = [], 0
            word.append(number)
            length += len(piece)
        if word:
            yield word

    def _bpe_dropout(self, text: str, alpha: float, generator: Random) -> list[str]:
        """Merge the best pair again and again, each time leaving out pairs with probability alpha.

        Provilkov et al. (2020), algorithm 1; equal scores merge from the left.
        """
        symbols, scores = list(text), self._scores
        while True:
            best, best_score = -1, -math.inf
            for place in range(len(symbols) - 1):
                score = scores.get(symbols[place] + symbols[place + 1])
                if score is not None and score > best_score and generator.random() >= alpha:
                    best, best_score = place, score
            if best < 0:
                return symbols
            symbols[best : best + 2] = [symbols[best] + symbols[best + 1]]

    def _unigram(self, text: str, alpha: float, generator: Random) -> list[str]:
        """Draw a segmentation with probability proportional to its pieces' product to the alpha.

        Kudo (2018), section 3.2, by forward sums and backward draws over all segmentations.
        """
        ways: list[list[tuple[int, float]]] = [[]]  # by end: starts and their log-weights
        totals = [0.0]
        for end in range(1, len(text) + 1):
            found = [
                (start, totals[start] + alpha * score)
                for start in range(max(0, end - self._longest), end)
                if (score := self._scores.get(text[start:end])) is not None
            ]
            top = max(weight for _, weight in found)
            totals.append(top + math.log(sum(math.exp(weight - top) for _, weight in found)))
            ways.append(found)
        pieces, end = [], len(text)
        while end:
            weights = [math.exp(weight - totals[end]) for _, weight in ways[end]]
            ((start, _),) = generator.choices(ways[end], weights)
            pieces.append(text[start:end])
            end = start
        return pieces[::-1]
