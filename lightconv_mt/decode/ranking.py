"""Which finished output is given out first: by log-probability, or one of three other scores."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from torch import Tensor

from lightconv_mt.decode.attention import coverage
from lightconv_mt.decode.config import DecodeConfig, Utility
from lightconv_mt.decode.trace import Hypothesis

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric


class ScoreKind(Enum):
    """What a score is: log-probability over the length penalty, or the sum of that and something.

    `coverage` adds coverage, `channel` the log-probability of the source; `utility` is a mean of
    its own.
    """

    log_prob = "log_prob"
    coverage = "coverage"
    channel = "channel"
    utility = "utility"

    @classmethod
    def of(cls, config: DecodeConfig) -> "ScoreKind":
        """Which one orders the outputs."""
        if config.mbr is not None:
            return cls.utility
        if config.channel_weight:
            return cls.channel
        return cls.coverage if config.coverage_penalty else cls.log_prob


@dataclass(frozen=True)
class Output:
    """A finished hypothesis as text.

    Attributes:
        hypothesis: its tokens and their log-probabilities.
        text: what they say.
        score: orders the outputs of a sentence; see `ScoreKind`.
    """

    hypothesis: Hypothesis
    text: str
    score: float


def search_config(config: DecodeConfig) -> DecodeConfig:
    """The search that finds all of the hypotheses that are put in order afterwards."""
    if ScoreKind.of(config) is ScoreKind.log_prob:
        return config
    return replace(config, nbest=config.beam_size)


def rank_by_coverage(
    outputs: Sequence[Output], weights: Sequence[Tensor], *, penalty: float
) -> list[Output]:
    """Order outputs by score + penalty x coverage (Wu et al., 2016, equation 14).

    Args:
        outputs: of one sentence, scored by log-probability.
        weights: source attention (T, S) of each.
        penalty: beta.
    """
    return _rank_by_sum(outputs, [penalty * coverage(each) for each in weights])


def rank_by_channel(
    outputs: Sequence[Output], source_scores: Sequence[float], *, weight: float
) -> list[Output]:
    """Order outputs by score + weight x log p(source | output) / source tokens.

    Noisy-channel reranking (Yee, Dauphin and Auli, 2019), without their language model.

    Args:
        outputs: of one sentence, scored by log-probability.
        source_scores: log-probability a source token that a model of the other direction gives
            the sentence, for each output.
        weight: of the source's.
    """
    return _rank_by_sum(outputs, [weight * log_prob for log_prob in source_scores])


def _rank_by_sum(outputs: Sequence[Output], added: Sequence[float]) -> list[Output]:
    """Order outputs by score + what is added to each."""
    scored = [
        replace(output, score=output.score + more)
        for output, more in zip(outputs, added, strict=True)
    ]
    return sorted(scored, key=lambda output: -output.score)


def rank_by_utility(outputs: Sequence[Output], utility: Utility) -> list[Output]:
    """Order samples by their expected utility, the mean of what they score against the others.

    Eikema and Aziz (2020), with the samples as both candidates and references. Equal
    texts count as often as they were drawn, and are given out once; equal utilities stay in order.

    Args:
        outputs: of one sentence.
        utility: the measure.
    """
    counts = Counter(output.text for output in outputs)
    if len(outputs) < 2:  # there are no others
        return [replace(output, score=0.0) for output in outputs]
    sums = dict.fromkeys(counts, 0.0)
    for reference, count in counts.items():
        # Its n-grams are counted once for all candidates.
        metric = _metric(utility, reference)
        for text in counts:
            others = count - (text == reference)
            if others:
                sums[text] += others * float(metric.corpus_score([text], None).score)
    distinct = {output.text: output for output in reversed(outputs)}
    scored = [
        replace(distinct[text], score=total / (len(outputs) - 1)) for text, total in sums.items()
    ]
    return sorted(scored, key=lambda output: -output.score)


def _metric(utility: Utility, reference: str) -> "Metric":
    # SacreBLEU is slow to import and rarely needed for translation.
    from sacrebleu import BLEU, CHRF

    if utility is Utility.chrf:
        return CHRF(references=[[reference]])
    return BLEU(effective_order=True, references=[[reference]])
