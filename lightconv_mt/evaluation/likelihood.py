"""How likely a run finds given references: log-probability and perplexity of each."""

import json
import logging
from collections.abc import Iterator
from itertools import islice
from math import isfinite
from typing import Any

from lightconv_mt.config import EvalConfig, ScoreFormat
from lightconv_mt.decode.translations import TargetScore
from lightconv_mt.decode.translator import Translator
from lightconv_mt.errors import DataError
from lightconv_mt.evaluation.data import TestData
from lightconv_mt.trained_run import load_translator

CHUNK_LINES = 1024  # scored together; more would only keep the first lines waiting

logger = logging.getLogger(__name__)


def reference_scores(
    translator: Translator, data: TestData, *, max_tokens: int
) -> Iterator[list[TargetScore]]:
    """For each line of the test data, how likely each of its references is.

    Raises:
        DataError: when there is no source.
    """
    if data.src is None:
        raise DataError("nothing to translate from; give src=FILE and ref=FILE, or test_set")
    lines = iter(zip(data.src, *data.references, strict=True))
    while chunk := list(islice(lines, CHUNK_LINES)):
        src, *streams = map(list, zip(*chunk, strict=True))
        found = [translator.score(src, stream, max_tokens=max_tokens) for stream in streams]
        yield from map(list, zip(*found, strict=True))


def likelihood_lines(config: EvalConfig, data: TestData) -> Iterator[tuple[str, TargetScore]]:
    """A line of output for each reference, beside what it says; references of a line together.

    Raises:
        DataError: when there is no source.
        CheckpointError: when the run has no such checkpoint or it is damaged.
    """
    translator = load_translator(
        config.run_dir[0], config.checkpoint, config.runtime, config.max_source_tokens
    )
    scores = reference_scores(translator, data, max_tokens=config.max_tokens)
    for line, found in enumerate(scores, 1):
        for reference, each in enumerate(found, 1):
            yield _format(line, reference, each, config.score_format), each


def corpus_likelihood(scores: list[TargetScore]) -> tuple[str, str]:
    """Sums over all references: a line of text, and JSON."""
    total = TargetScore(
        sum(score.log_prob for score in scores), sum(score.tokens for score in scores)
    )
    text = (
        f"perplexity {total.perplexity:.4f} a token, log-probability {total.log_prob:.2f} of "
        f"{total.tokens:,} tokens in {len(scores):,} references"
    )
    return text, json.dumps({"references": len(scores), **_values(total)}, indent=1) + "\n"


def _format(line: int, reference: int, score: TargetScore, kind: ScoreFormat) -> str:
    if kind is ScoreFormat.jsonl:
        return json.dumps({"line": line, "reference": reference, **_values(score)}) + "\n"
    return f"{line}\t{reference}\t{score.log_prob:.6f}\t{score.tokens}\t{score.perplexity:.6f}\n"


def _values(score: TargetScore) -> dict[str, Any]:
    """Numbers of a score; null where JSON has none for them."""
    values = {"log_prob": score.log_prob, "tokens": score.tokens, "perplexity": score.perplexity}
    return {key: value if isfinite(value) else None for key, value in values.items()}
