"""lcmt-eval from configuration to output: results to standard output, notes to the log."""

import logging
import sys
from pathlib import Path

from lightconv_mt.assemble import start_runtime
from lightconv_mt.config import EvalConfig
from lightconv_mt.errors import DataError
from lightconv_mt.evaluation.data import TestData, read_test_data
from lightconv_mt.evaluation.likelihood import corpus_likelihood, likelihood_lines
from lightconv_mt.evaluation.report import report_text, results_json
from lightconv_mt.evaluation.results import score_systems, scoring_metrics
from lightconv_mt.evaluation.systems import read_systems, translate_systems, write_text

logger = logging.getLogger(__name__)


def evaluate(config: EvalConfig) -> int:
    """Do what the configuration asks for; returns the exit code."""
    start_runtime(config.runtime)
    _check_writable(config)
    data = read_test_data(config)
    if config.score:
        _evaluate_likelihood(config, data)
        return 0
    metrics = scoring_metrics(config, data)  # before anything is translated: it may be refused
    collect = read_systems if config.hyp else translate_systems
    found = score_systems(config, data, metrics, [*collect(config, data)])
    _show(report_text(found, config.significance))
    if config.json is not None:
        write_text(config.json, results_json(found))
    return 0


def _check_writable(config: EvalConfig) -> None:
    """Raise DataError, before anything is translated, for what no file can be written as."""
    for path in [*config.output, *([config.json] if config.json is not None else [])]:
        folder = Path(path).parent
        if not folder.is_dir():
            raise DataError(f"cannot write {path}: there is no folder {folder}; make it first")
        if Path(path).exists() and not Path(path).is_file():
            raise DataError(f"cannot write {path}: it is no file; choose another path")


def _evaluate_likelihood(config: EvalConfig, data: TestData) -> None:
    """Write a line a reference; the sums go where they do not mix with these."""
    lines, scores = [], []
    for line, score in likelihood_lines(config, data):
        scores.append(score)
        if config.output:
            lines.append(line)
        else:
            _show(line)
    text, summary = corpus_likelihood(scores)
    if config.output:
        write_text(config.output[0], "".join(lines))
        _show(f"{text}\n")
    else:
        logger.info("%s", text)
    if config.json is not None:
        write_text(config.json, summary)


def _show(text: str) -> None:
    sys.stdout.buffer.write(text.encode())
