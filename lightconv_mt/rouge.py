"""ROUGE by rouge-score as a metric of sacrebleu's kind, with all that it does for BLEU."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from sacrebleu.metrics.base import Metric, Score, Signature

from lightconv_mt.errors import ConfigError


class RougeSignature(Signature):
    """As sacrebleu's, with the version of rouge-score at the end."""

    def format(self, short: bool = False) -> str:
        """The signature; `short` abbreviates sacrebleu's keys."""
        own, _, _ = super().format(short).rpartition("|")
        return f"{own}|stem:porter|mean:lines|rouge-score:{version('rouge-score')}"


class Rouge(Metric):
    """F-measure of stemmed words, the mean over lines, of English text.

    A line's best reference counts. ROUGE-L sees a summary as one sentence.
    """

    _SIGNATURE_TYPE = RougeSignature

    def __init__(self, name: str) -> None:
        """Count by one of rouge1, rouge2 and rougeL.

        Raises:
            ConfigError: when rouge-score is not installed.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise ConfigError(
                f"metrics={name} needs rouge-score; pip install 'lightconv-mt[summaries]'"
            ) from error
        self.key, self.name = name, f"ROUGE-{name.removeprefix('rouge')}"
        self.scorer = RougeScorer([name], use_stemmer=True)

    def _preprocess_segment(self, sent: str) -> str:
        return sent

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, Any]:
        return {"targets": list(refs)}

    def _compute_segment_statistics(
        self, hypothesis: str, ref_kwargs: dict[str, Any]
    ) -> list[float]:
        """F-measure and number of lines, both of which add up over a corpus."""
        found = self.scorer.score_multi(ref_kwargs["targets"], hypothesis)
        return [found[self.key].fmeasure, 1.0]

    def _compute_score_from_stats(self, stats: Sequence[float]) -> Score:
        return Score(self.name, 100.0 * float(stats[0]) / float(stats[1]))

    def _aggregate_and_compute(self, stats: Sequence[Sequence[float]]) -> Score:
        return self._compute_score_from_stats([sum(column) for column in zip(*stats, strict=True)])
