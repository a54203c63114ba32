"""What lcmt-eval scores, and by which metrics."""

import json
from dataclasses import dataclass

from lightconv_mt.config import EvalConfig, load_run_config
from lightconv_mt.data.corpus import read_source
from lightconv_mt.data.lines import read_lines
from lightconv_mt.errors import DataError
from lightconv_mt.paper_scoring import moses_tokenizer, paper_scores
from lightconv_mt.scoring import Score, load_test_set, score


@dataclass(frozen=True)
class TestData:
    """What is translated and what it is held against.

    Attributes:
        src: source lines; None where translations are given.
        references: one or more streams of as many lines.
        tgt_lang: language of the references, where it is known.
    """

    src: list[str] | None
    references: list[list[str]]
    tgt_lang: str | None


def read_test_data(config: EvalConfig) -> TestData:
    """Read the test set, files, or test data of the run that a configuration names.

    Raises:
        DataError: when there is none or it cannot be read.
    """
    named = config.langpair.split("-")[-1] if config.langpair is not None else None
    if config.test_set is not None:
        assert config.langpair is not None
        src, references = load_test_set(config.test_set, config.langpair)
        return TestData(src, references, named)
    run = load_run_config(config.run_dir) if config.run_dir is not None else None
    tgt_lang = named or (run.data.tgt_lang if run is not None else None)
    if config.ref:
        lines = list(read_lines(config.src)) if config.src is not None else None
        return TestData(lines, [list(read_lines(path)) for path in config.ref], tgt_lang)
    if run is None or run.data.test is None:
        raise DataError(
            f"{config.run_dir} has no test set of its own (data.test); give src=FILE and ref=FILE"
        )
    pairs = list(read_source(run.data.test, run.data))
    return TestData([pair.src for pair in pairs], [[pair.tgt for pair in pairs]], tgt_lang)


def check_scoring(config: EvalConfig) -> None:
    """Raise ConfigError, before anything is translated, when a metric's library is not there."""
    if config.paper_scoring:
        moses_tokenizer("en")
    names = [metric.name for metric in config.metrics if metric.name.startswith("rouge")]
    if names:
        score(["a"], [["a"]], metrics=names)


def score_all(config: EvalConfig, hypotheses: list[str], data: TestData) -> list[Score]:
    """The scores that a configuration asks for; the paper's scale after SacreBLEU's."""
    scores = score(
        hypotheses,
        data.references,
        metrics=[metric.name for metric in config.metrics],
        tokenize=config.tokenize,
        lowercase=config.lowercase,
        tgt_lang=data.tgt_lang,
    )
    if config.paper_scoring:
        assert data.tgt_lang is not None
        scores += paper_scores(
            hypotheses, data.references, tgt_lang=data.tgt_lang, lowercase=config.lowercase
        )
    return scores


def scores_json(scores: list[Score]) -> str:
    """A list of name, score and signature."""
    found = [{"name": s.name, "score": s.value, "signature": s.signature} for s in scores]
    return json.dumps(found, indent=1) + "\n"
