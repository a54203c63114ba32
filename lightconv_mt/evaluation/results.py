"""From translations to figures: which metrics a configuration asks for, and what they find."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightconv_mt.config import EvalConfig, Significance
from lightconv_mt.evaluation.data import TestData
from lightconv_mt.evaluation.lengths import Bucket, bucket_scores, length_buckets
from lightconv_mt.evaluation.systems import System
from lightconv_mt.evaluation.worst import Worst, worst_sentences
from lightconv_mt.paper_scoring import paper_metrics
from lightconv_mt.scoring import Score, build_metric, build_metrics, joined_warnings, score_by
from lightconv_mt.significance import check_seed, compare

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric


@dataclass(frozen=True)
class Result:
    """What was found of one system.

    Attributes:
        system: its name and translations.
        scores: one a metric.
        by_length: scores of each bucket, one a metric; empty where they were not asked for.
        worst: None where it was not asked for.
    """

    system: System
    scores: list[Score]
    by_length: list[list[float]]
    worst: Worst | None


@dataclass(frozen=True)
class Results:
    """What was found of all systems.

    Attributes:
        results: the baseline's first.
        buckets: of sentences by length; empty where they were not asked for.
        unit: what length is counted in and of which side, such as source words.
    """

    results: list[Result]
    buckets: list[Bucket]
    unit: str


def scoring_metrics(config: EvalConfig, data: TestData) -> list["Metric"]:
    """SacreBLEU's and ROUGE, the paper's scale after them.

    Raises:
        ConfigError: for all that scoring would stumble over: a tokenizer that does not exist or is
            not installed, a seed of resampling that is no number.
    """
    check_seed()
    with joined_warnings():
        metrics = build_metrics(
            [metric.name for metric in config.metrics],
            tokenize=config.tokenize,
            lowercase=config.lowercase,
            tgt_lang=data.tgt_lang,
        )
    if config.paper_scoring:
        assert data.tgt_lang is not None
        metrics += paper_metrics(data.tgt_lang, lowercase=config.lowercase)
    return metrics


def score_systems(
    config: EvalConfig, data: TestData, metrics: list["Metric"], systems: Sequence[System]
) -> Results:
    """Score one system, or several against the first, by `scoring_metrics`."""
    references = [[line.rstrip() for line in stream] for stream in data.references]
    outputs = [[line.rstrip() for line in system.hypotheses] for system in systems]
    unit, buckets = _buckets(config, data) if config.by_length else ("", [])
    with joined_warnings():
        if len(outputs) == 1:
            resamples = config.resamples if config.confidence else 0
            scores = [score_by(metrics, outputs[0], references, resamples=resamples)]
        else:
            scores = compare(
                outputs,
                references,
                metrics,
                randomization=config.significance is Significance.randomization,
                resamples=config.resamples,
            )
        found = [
            Result(
                system,
                of_system,
                bucket_scores(metrics, lines, references, buckets),
                _worst(config, data, lines, references),
            )
            for system, of_system, lines in zip(systems, scores, outputs, strict=True)
        ]
    return Results(found, buckets, unit)


def _buckets(config: EvalConfig, data: TestData) -> tuple[str, list[Bucket]]:
    side = "reference" if data.src is None else "source"
    unit, buckets = length_buckets(data.references[0] if data.src is None else data.src)
    return f"{side} {unit}", buckets


def _worst(
    config: EvalConfig, data: TestData, hypotheses: list[str], references: list[list[str]]
) -> Worst | None:
    if not config.worst:
        return None
    names = [metric.name for metric in config.metrics]
    metric = build_metric(
        "chrf" if "chrf" in names else names[0],
        tokenize=config.tokenize,
        lowercase=config.lowercase,
        tgt_lang=data.tgt_lang,
        effective_order=True,
    )
    return worst_sentences(metric, hypotheses, references, data.src, count=config.worst)
