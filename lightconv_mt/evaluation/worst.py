"""The sentences that a system translates worst."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric


@dataclass(frozen=True)
class Sentence:
    """One sentence and its score by itself.

    Attributes:
        line: its number, from 1.
        score: 0 to 100; TER may exceed 100.
        src: the source; None where it is not known.
        hypothesis: the translation.
        references: what it was held against.
    """

    line: int
    score: float
    src: str | None
    hypothesis: str
    references: list[str]


@dataclass(frozen=True)
class Worst:
    """The worst of a system's sentences.

    Attributes:
        metric: name of what they are judged by.
        sentences: the worst first.
    """

    metric: str
    sentences: list[Sentence]


def worst_sentences(
    metric: "Metric",
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    src: Sequence[str] | None,
    *,
    count: int,
) -> Worst:
    """The sentences with the worst scores of their own, the worst first, then by line.

    Args:
        metric: of sacrebleu's kind; BLEU with effective order.
        hypotheses: lines as scored.
        references: one or more streams of as many lines.
        src: sources, where they are known.
        count: how many.
    """
    targets = [list(each) for each in zip(*references, strict=True)]
    found = [
        metric.sentence_score(hypothesis, each)
        for hypothesis, each in zip(hypotheses, targets, strict=True)
    ]
    name = found[0].name
    sign = -1.0 if name == "TER" else 1.0  # an error rate: more is worse
    scores = [float(each.score) for each in found]
    places = nsmallest(count, range(len(scores)), key=lambda place: (sign * scores[place], place))
    return Worst(
        name,
        [
            Sentence(
                place + 1,
                scores[place],
                None if src is None else src[place],
                hypotheses[place],
                targets[place],
            )
            for place in places
        ],
    )
