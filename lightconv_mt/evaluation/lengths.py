"""Scores of short and of long sentences apart."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

# Most words of a bucket. In characters twice as many, about what a word of Chinese has.
BOUNDS = (0, 5, 10, 15, 20, 30, 40, 60)
# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana and Chinese characters.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)


@dataclass(frozen=True)
class Bucket:
    """Sentences alike in length.

    Attributes:
        first: least length.
        last: most; None where there is no limit.
        places: of the sentences in the test set, from 0.
    """

    first: int
    last: int | None
    places: list[int]

    @property
    def name(self) -> str:
        """Such as 6-10, and 61+ for the last."""
        if self.last is None:
            return f"{self.first}+"
        return f"{self.first}-{self.last}" if self.last > self.first else f"{self.first}"


def length_buckets(lines: Sequence[str]) -> tuple[str, list[Bucket]]:
    """Sort sentences into buckets by length; those without any are left out.

    Args:
        lines: sources or references.

    Returns:
        What length is counted in, words or characters, and the buckets from short to long. Words
        stand between spaces; text mostly in a script without them is counted in characters.
    """
    words = [len(line.split()) for line in lines]
    characters = [sum(map(len, line.split())) for line in lines]
    if 2 * sum(len(_UNSPACED.findall(line)) for line in lines) > sum(characters):
        unit, lengths, bounds = "characters", characters, [2 * bound for bound in BOUNDS]
    else:
        unit, lengths, bounds = "words", words, [*BOUNDS]
    spans: list[tuple[int, int | None]] = [
        (0, 0),
        *((low + 1, high) for low, high in pairwise(bounds)),
        (bounds[-1] + 1, None),
    ]
    buckets = [
        Bucket(
            first,
            last,
            [
                place
                for place, length in enumerate(lengths)
                if first <= length and (last is None or length <= last)
            ],
        )
        for first, last in spans
    ]
    return unit, [bucket for bucket in buckets if bucket.places]


def bucket_scores(
    metrics: Sequence["Metric"],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    buckets: Sequence[Bucket],
) -> list[list[float]]:
    """Corpus scores of each bucket by itself, in the order of the metrics; lines as scored."""
    scores = []
    for bucket in buckets:
        part = [hypotheses[place] for place in bucket.places]
        streams = [[stream[place] for place in bucket.places] for stream in references]
        scores.append([float(metric.corpus_score(part, streams).score) for metric in metrics])
    return scores
